//! The model on plain burn operations, as on a GPU: the trainer on burn's ndarray backend against transformers' Trainer.
//! (Features, logits, loss, every gradient and greedy text on this backend are in `forward` and `generation`.)

use kernels::device::DeviceKind;
use tests::training::{compare_with_reference, in_process};

#[test]
fn eight_steps_on_ndarray_equal_transformers_trainer() {
    let device = DeviceKind::Ndarray.open().expect("a build with the feature ndarray").autodiff();
    compare_with_reference("ndarray", |output, train_type, split| {
        in_process(output, train_type, split, &device, &["--device", "ndarray"]);
    });
}
