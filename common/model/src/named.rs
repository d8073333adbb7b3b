//! Walks over a module's parameters by name: a parameter's module path is its published name.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// Looks at parameters.
pub trait NamedVisitor {
    /// A parameter and its name.
    fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>);
}

/// Puts parameters in the place of others.
pub trait NamedMapper {
    /// What takes the place of a parameter of this name.
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Shows every parameter of a module, in the module's order.
pub fn visit_named(module: &impl Module, visitor: &mut impl NamedVisitor) {
    visit_named_below(module, None, visitor);
}

/// As [`visit_named`], for a part of a model whose place in the model is `root`.
pub fn visit_named_below(module: &impl Module, root: Option<&str>, visitor: &mut impl NamedVisitor) {
    module.visit(&mut Walk { path: root.map(str::to_string).into_iter().collect(), of: visitor });
}

/// The module with every parameter replaced.
pub fn map_named<M: Module>(module: M, mapper: &mut impl NamedMapper) -> M {
    module.map(&mut Walk { path: Vec::new(), of: mapper })
}

struct Walk<'a, T> {
    path: Vec<String>,
    of: &'a mut T,
}

impl<V: NamedVisitor> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.of.visit(self.path.join("."), param);
    }
}

impl<M: NamedMapper> ModuleMapper for Walk<'_, M> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.of.map(self.path.join("."), param)
    }
}
