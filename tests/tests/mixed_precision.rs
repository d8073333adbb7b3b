//! Training in bf16 with f32 masters, on the plain operations of a GPU, on the CPU: against the f32 reference.

use std::path::Path;
use tests::tiny::read_tensors_at;
use tests::training::{Split, column, compare, final_weights, metrics, reference_log, succeed, threads};

fn train(output: &Path, train_type: &str, ranks: usize, more: &[&str]) -> String {
    let split = Split { ranks, micro_batch: 2, accumulation: 2 / ranks };
    let run = succeed(threads(output, train_type, split, more).args(["--device", "cpu-bf16"]));
    String::from_utf8_lossy(&run.stderr).into_owned()
}

/// ‖a − b‖ / ‖b − c‖: how far two runs ended apart, in units of how far the reference went.
fn apart(found: &[f32], reference: &[f32], start: &[f32]) -> f64 {
    let norm = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
    };
    norm(found, reference) / norm(reference, start)
}

#[test]
fn eight_steps_in_bf16_stay_close_to_the_f32_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, ranks) in [("none", 1), ("none", 2), ("freeze_vision", 1), ("use_lora", 2)] {
        let output = folder.path().join(format!("{train_type}-{ranks}"));
        let said = train(&output, train_type, ranks, &[]);
        assert!(said.contains("computing in bf16; master weights"), "{said}");
        let (found, expected) = (metrics(&output), reference_log(train_type));
        let name = format!("bf16, {train_type}, {ranks} ranks");
        // bf16 has 8 bits, 0.4 % a value; over sums of many most of it averages out.
        compare(&name, "loss", &found, &expected, 5e-4);
        compare(&name, "grad_norm", &found, &expected, 2e-2);
    }
}

/// Steps of 1e-5 are lost in bf16 weights of 0.05 (spacing 2.4e-4), and add up in their masters.
#[test]
fn masters_keep_what_bf16_would_lose() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (output, f32_run) = (folder.path().join("bf16"), folder.path().join("f32"));
    let small = ["--learning_rate", "1e-5", "--save_strategy", "steps", "--save_steps", "8"];
    train(&output, "none", 1, &small);
    let split = Split { ranks: 1, micro_batch: 2, accumulation: 2 };
    succeed(&mut threads(&f32_run, "none", split, &small));
    let optimizer = read_tensors_at(&output.join("checkpoint-8/optimizer-00000-of-00001.safetensors"));
    let rounded = read_tensors_at(&output.join("model.safetensors"));
    let reference = read_tensors_at(&f32_run.join("model.safetensors"));
    let start = read_tensors_at(&tests::reference("tiny/llava/model.safetensors"));
    let mut compared = 0;
    for (name, (values, _)) in &rounded {
        let Some((masters, _)) = optimizer.get(&format!("master/{name}/0")) else { continue };
        let nearest: Vec<f32> = masters.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
        assert_eq!(*values, nearest, "{name}: the model has the masters' values, rounded");
        if name.ends_with("mlp.down_proj.weight") {
            let [of_masters, of_rounded] =
                [masters, values].map(|found| apart(found, &reference[name].0, &start[name].0));
            println!("{name}: masters {of_masters:.3}, rounded {of_rounded:.3} of the way from where f32 ended");
            assert!(of_masters < 0.5 && of_rounded > 2.0 * of_masters, "{name}: {of_masters}, {of_rounded}");
            compared += 1;
        }
    }
    assert!(compared > 0, "no masters in the checkpoint");
}

#[test]
fn a_bf16_run_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for ranks in [1, 2] {
        let (whole, resumed) = (folder.path().join(format!("w{ranks}")), folder.path().join(format!("r{ranks}")));
        train(&whole, "none", ranks, &[]);
        train(&resumed, "none", ranks, &["--save_strategy", "steps", "--save_steps", "3"]);
        for step in [6, 8] {
            std::fs::remove_dir_all(resumed.join(format!("checkpoint-{step}"))).expect("a checkpoint");
        }
        train(&resumed, "none", ranks, &["--resume_from_checkpoint", "true"]);
        assert_eq!(column(&metrics(&whole), "loss"), column(&metrics(&resumed), "loss"), "{ranks} ranks");
        assert!(final_weights(&whole) == final_weights(&resumed), "{ranks} ranks: other weights");
    }
}
