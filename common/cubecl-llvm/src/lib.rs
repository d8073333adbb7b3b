//! Stands in for cubecl's LLVM compiler (`[patch.crates-io]` in the workspace).
//!
//! cubecl-cuda links its LLVM compiler always, even with the feature `cpp`, with which it compiles CUDA C++ by NVRTC and never
//! calls LLVM. The real crate's build script downloads an LLVM of 1 GB. This crate has the items that cubecl-cuda 0.11 names,
//! and one that is called says so.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::CompilationError;
use cubecl_server::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;
use std::ffi::c_char;

/// What to compile for.
#[derive(Clone, Copy, Debug, Default)]
pub enum LlvmTarget {
    /// NVIDIA GPUs.
    #[default]
    Nvptx,
}

/// A compiled kernel. None is ever made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its PTX.
    pub ptx: Vec<c_char>,
    /// The kernel's name in it.
    pub entrypoint: String,
    /// LLVM's text.
    pub ir: String,
    /// Bytes of dynamic shared memory.
    pub shared_memory_size: usize,
    /// Which buffers it reads and writes.
    pub io: Vec<BufferIOAttr>,
}

/// What a compilation gives.
#[derive(Debug)]
pub enum PlironArtifact {
    /// For NVIDIA GPUs.
    NvptxCode(NvptxModule),
    /// For others.
    Other,
}

/// Options of a compilation.
#[derive(Debug, Default)]
pub struct PlironOptions {
    /// AMD's architecture.
    pub arch: Option<()>,
    /// NVIDIA's architecture.
    pub sm_arch: Option<SmArch>,
    /// The newest PTX that the driver takes.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars are kernel parameters.
    pub grid_constants: bool,
    /// cubecl-cuda takes the other options' defaults.
    pub others: (),
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

impl PlironCompiler {
    /// Compiles nothing.
    ///
    /// # Errors
    /// Always.
    pub fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        let reason = "this build has no LLVM: it compiles CUDA kernels by NVRTC (cubecl-cuda's feature cpp)".to_owned();
        Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() })
    }

    /// The language of its text.
    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// For NVIDIA GPUs.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use std::fmt;

        /// A version of PTX. NVRTC chooses its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// The newest that a driver takes: of no use without LLVM.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none")
            }
        }
    }
}

/// For every target.
pub mod shared {
    /// What LLVM cannot lower.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A target.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// NVIDIA GPUs.
            Nvptx,
        }

        /// Called only where LLVM compiles.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
