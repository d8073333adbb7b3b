//! The model away from the CPU's kernels, on burn's ndarray backend and with the kernels for GPUs on a Vulkan device: the trainer
//! against transformers' Trainer. (Features, logits, loss, every gradient and greedy text on these devices are in `forward` and
//! `generation`.)

use burn::tensor::Device;
use kernels::device::DeviceKind;
use tests::references::{Reference, TINY};
use tests::training::{compare_jobs, in_process_of};

fn train_as_transformers(model: Reference, name: &str, device: &Device, ranks: usize) {
    let device = device.clone().autodiff();
    compare_jobs(model, name, ranks, |output, train_type, split| {
        in_process_of(model, output, train_type, split, &device, &["--device", name]);
    });
}

#[test]
#[cfg(feature = "ndarray")]
fn eight_steps_on_ndarray_equal_transformers_trainer() {
    let device = DeviceKind::Ndarray.open().expect("a build with the feature ndarray");
    [1, 2].into_iter().for_each(|ranks| train_as_transformers(TINY, "ndarray", &device, ranks));
}

#[cfg(feature = "wgpu")]
mod vulkan {
    use super::train_as_transformers;
    use burn::tensor::Device;
    use model::Llava;
    use tests::inference::{infer_ok, model_dir};
    use tests::references::{Reference, TINY};
    use tests::training::{Split, compare, metrics, succeed, threads};
    use tests::{assert_norm_close, assert_relative, reference, tiny};

    #[test]
    fn eight_steps_equal_transformers_trainer() {
        let Some(device) = tests::vulkan() else { return };
        [1, 2].into_iter().for_each(|ranks| train_as_transformers(TINY, "vulkan", &device, ranks));
    }

    /// Heads of 32: with the kernels of attention.
    #[test]
    fn a_qwen3_trains_as_with_transformers_trainer() {
        let Some(device) = tests::vulkan() else { return };
        train_as_transformers(Reference { name: "clip_qwen3" }, "vulkan", &device, 1);
    }

    /// Loss and every gradient with heads as large as those of real models, for which the references are too small.
    #[test]
    fn large_heads_equal_the_cpu() {
        let Some(device) = tests::vulkan() else { return };
        let config = tiny::config_with_large_heads();
        let batch = tiny::forward_batch(&tiny::read_tensors("tiny/forward.safetensors"), config.image_token_index);
        let run = |device: Device| {
            let model = Llava::random(&config, 5, &device.autodiff());
            let (loss, _) = model.loss(&batch, &config);
            let gradients = tiny::gradients(&model, &loss);
            (tiny::values(loss), gradients)
        };
        let ((loss, gradients), (of_cpu, expected)) = (run(device), run(Device::flex()));
        assert_relative("vulkan: large heads: loss", &loss, &of_cpu, 1e-5);
        assert_eq!(gradients.len(), expected.len());
        for (name, expected) in &expected {
            // Without RoPE a key bias shifts all scores of a query alike: its gradient is rounding noise.
            if !(name.starts_with("vision_tower") && name.ends_with("k_proj.bias")) {
                assert_norm_close(&format!("vulkan: large heads: grad.{name}"), &gradients[name], expected, 1e-4);
            }
        }
    }
    /// `train` and `infer` with `--device vulkan`: the losses of a CPU's run, with dropout too, and the same text.
    #[test]
    fn programs_train_and_answer_as_on_the_cpu() {
        if tests::vulkan().is_none() {
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let split = Split { ranks: 1, micro_batch: 2, accumulation: 2 };
        for (train_type, more) in [("use_lora", &["--lora_dropout", "0.1"][..]), ("freeze_vision", &[])] {
            let [on_cpu, on_vulkan] = ["cpu", "vulkan"].map(|device| {
                let output = folder.path().join(format!("{train_type}-{device}"));
                succeed(&mut threads(&output, train_type, split, &[&["--device", device], more].concat()));
                metrics(&output)
            });
            for (key, tolerance) in [("loss", 1e-5), ("grad_norm", 1e-4)] {
                compare(&format!("vulkan: train, {train_type}"), key, &on_vulkan, &on_cpu, tolerance);
            }
        }
        let (model, image) = (model_dir("tiny/train_none"), reference("pictures/images/100000000.jpg"));
        let [model, image] = [model.path(), &image].map(|path| path.to_str().expect("UTF-8"));
        let [on_cpu, on_vulkan] = ["cpu", "vulkan"].map(|device| {
            let prompt = ["--prompt", "What is this?", "--max-new-tokens", "24", "--device", device];
            infer_ok(&[&["generate", "--model", model, "--image", image], &prompt[..]].concat())
        });
        assert!(!on_cpu.trim().is_empty());
        assert_eq!(on_vulkan, on_cpu, "text of infer generate");
        println!("vulkan: infer generate: {on_vulkan}");
    }
}
