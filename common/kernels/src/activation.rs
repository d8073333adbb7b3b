//! Activations that configurations name.

/// Activation of an MLP (`hidden_act`, `projector_hidden_act`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Exact (erf) GELU.
    Gelu,
    /// GELU with tanh in place of erf.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `x · sigmoid(x)`.
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluTanh, Self::QuickGelu, Self::Silu];

    /// From one of transformers' names.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "swish" => Some(Self::Silu),
            name => Self::ALL.into_iter().find(|activation| activation.name() == name),
        }
    }

    /// transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::QuickGelu => "quick_gelu",
            Self::Silu => "silu",
        }
    }
}
