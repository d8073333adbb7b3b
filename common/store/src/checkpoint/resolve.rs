//! Which of a configuration's tensors a directory holds, and under which names.

use super::read::{TensorFiles, TensorView};
use base::{Error, Result, names};
use burn::tensor::Device;
use kernels::QuantizedWeight;
use model::expected::ExpectedTensor;
use std::collections::BTreeMap;

/// Tensors of mapped files by published name, complete and of the right shapes.
pub struct Weights<'a> {
    files: &'a TensorFiles,
    stored_names: BTreeMap<String, &'a str>,
}

impl<'a> Weights<'a> {
    /// Finds every tensor of `tensors`; tensors for which `ignore` holds (by the name in the file) may be there as well.
    ///
    /// # Errors
    /// Names the first missing, misshapen, doubled or extra tensor, and says how many more there are.
    pub fn resolve(files: &'a TensorFiles, tensors: &[ExpectedTensor], ignore: impl Fn(&str) -> bool) -> Result<Self> {
        let mut stored_names = BTreeMap::new();
        let expected: BTreeMap<&str, &ExpectedTensor> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mut problems = Vec::new();
        for stored in files.names() {
            match names::canonical(stored).filter(|name| expected.contains_key(name.as_str())) {
                Some(name) => {
                    if let Some(first) = stored_names.insert(name, stored) {
                        problems.push(problem(
                            files,
                            stored,
                            "the same tensor as ".to_string() + first,
                            "one of the two",
                        ));
                    }
                }
                None if ignore(stored) => {}
                None => problems.push(problem(files, stored, "an extra tensor", "a tensor that config.json calls for")),
            }
        }
        for tensor in tensors {
            match stored_names.get(&tensor.name).and_then(|stored| Some((stored, files.shape(stored)?))) {
                None => problems.push(missing(files, tensor)),
                Some((stored, shape)) if shape != tensor.shape => {
                    problems.push(problem(files, stored, format!("shape {shape:?}"), format!("{:?}", tensor.shape)));
                }
                Some(_) => {}
            }
        }
        match first_of(problems) {
            Some(error) => Err(error),
            None => Ok(Self { files, stored_names }),
        }
    }

    /// A weight in NF4 or 8-bit integers by its published name, on a device; `None` for other tensors.
    ///
    /// # Errors
    /// Parts that do not fit each other.
    pub fn in_few_bits(&self, name: &str, device: &Device) -> Option<Result<QuantizedWeight>> {
        self.files.in_few_bits(self.stored_names.get(name)?, device)
    }

    /// A tensor by its published name; `None` for one in few bits.
    pub fn get(&self, name: &str) -> Option<TensorView<'a>> {
        self.files.get(self.stored_names.get(name)?)
    }

    /// See [`TensorFiles::release`].
    pub fn release(&self, name: &str) {
        if let Some(stored) = self.stored_names.get(name) {
            self.files.release(stored);
        }
    }
}

struct Problem {
    place: String,
    found: String,
    expected: String,
}

fn problem(files: &TensorFiles, stored: &str, found: impl Into<String>, expected: impl Into<String>) -> Problem {
    let path = files.path_of(stored).map(|path| path.display().to_string()).unwrap_or_default();
    Problem { place: format!("{path}: tensor {stored}"), found: found.into(), expected: expected.into() }
}

fn missing(files: &TensorFiles, tensor: &ExpectedTensor) -> Problem {
    let any = files.names().first().and_then(|name| files.path_of(name)?.parent()).map(|dir| dir.display().to_string());
    Problem {
        place: format!("{}: tensor {}", any.unwrap_or_else(|| "the weights".into()), tensor.name),
        found: "none".into(),
        expected: format!("shape {:?}", tensor.shape),
    }
}

fn first_of(problems: Vec<Problem>) -> Option<Error> {
    let more = problems.len().saturating_sub(1);
    let Problem { place, found, expected } = problems.into_iter().next()?;
    let others = if more > 0 { format!(" (and {more} more tensors do not fit)") } else { String::new() };
    Some(Error::invalid(
        place,
        found,
        expected,
        format!("use the config.json and weights of one and the same model{others}"),
    ))
}
