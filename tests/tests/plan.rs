//! `train plan`: exact numbers of the real job from its configuration files; the forecast of memory against the real peak.

use kernels::device::cpu;
use model::Llava;
use model::config::{LlavaConfig, TextConfig, VisionConfig};
use std::path::Path;
use std::process::Command;
use store::checkpoint::{copy_processor_files, save_model};
use tests::runs::json_lines;
use tests::training::{fail, succeed};
use tests::{program, reference};

/// The plan of the real job, from the two backbones' configs alone.
fn real_plan(more: &[&str]) -> String {
    plan_of("clip-vit-large-patch14-336", "qwen1.5-4b-chat", more)
}

/// The plan of a job with two backbones, from their configs alone.
fn plan_of(vision_tower: &str, language_model: &str, more: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = |name: &str| tests::project_file(&format!("configs/{name}"));
    let mut command = Command::new(program("train"));
    command.arg("plan").arg("--vision-tower").arg(config(vision_tower));
    command.arg("--language-model").arg(config(language_model));
    command.arg("--output_dir").arg(folder.path().join("run"));
    command.args(["--nproc", "4", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "8"]);
    planned(command.args(more))
}

/// The text of a plan, whether the job fits this machine or not.
fn planned(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let (code, stderr) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
    assert!(code == Some(0) || code == Some(3), "{code:?}: {stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(code == Some(3), text.contains("DOES NOT FIT"), "{text}");
    text
}

/// The numbers of a line of the plan that starts with `name`.
fn numbers(plan: &str, name: &str) -> Vec<u64> {
    let line = plan.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no line {name} in\n{plan}"));
    line.split_whitespace().map_while(|word| word.replace(',', "").parse().ok()).collect()
}

#[test]
fn parameters_of_the_real_model_are_exact() {
    const ALL: u64 = 4_263_056_896;
    const PROJECTOR: u64 = 9_180_160;
    const TEXT_LORA: u64 = 26_214_400;
    // The tower's last layer and its last norm are computed for nobody.
    const UNREACHABLE: u64 = 12_596_224 + 2_048;

    let none = real_plan(&["--train_type", "none"]);
    assert_eq!(numbers(&none, "together"), [ALL, ALL - UNREACHABLE]);
    assert!(none.contains("12,598,272 values cannot receive gradients"), "{none}");

    let frozen = real_plan(&["--train_type", "freeze_vision"]);
    assert_eq!(numbers(&frozen, "together"), [ALL, 3_959_549_440]);
    assert_eq!(numbers(&frozen, "vision tower"), [303_507_456, 0]);

    let projector = real_plan(&["--train_type", "projector"]);
    assert_eq!(numbers(&projector, "together"), [ALL, PROJECTOR]);

    let lora = real_plan(&["--train_type", "use_lora"]);
    assert_eq!(numbers(&lora, "LoRA in the language model"), [TEXT_LORA, TEXT_LORA]);
    assert_eq!(numbers(&lora, "projector"), [PROJECTOR, PROJECTOR]);
    assert_eq!(numbers(&lora, "together"), [ALL + TEXT_LORA, TEXT_LORA + PROJECTOR]);

    let both = real_plan(&["--train_type", "use_lora", "--lora_vision", "true"]);
    // 24 layers get matrices, the 23 computed ones of them are trained.
    assert_eq!(numbers(&both, "LoRA in the vision tower"), [4_718_592, 4_521_984]);
    assert_eq!(numbers(&both, "together")[1], TEXT_LORA + PROJECTOR + 4_521_984);
}

/// Matrices, magnitudes and whole modules that PEFT gives the real model.
#[test]
fn parameters_of_adapters_are_exact() {
    let lora = |more: &[&str]| real_plan(&[&["--train_type", "use_lora"], more].concat());
    let plan = lora(&["--lora_target_modules", "all-linear", "--use_dora", "--modules_to_save", "None"]);
    // 40 layers: q, k, v, o of 2560 → 2560, gate and up → 6912, down back; rank 32; a magnitude for each output.
    let matrices = 40 * (4 * 32 * 5120 + 3 * 32 * 9472);
    assert_eq!(numbers(&plan, "LoRA in the language model"), [matrices + 40 * (5 * 2560 + 2 * 6912); 2]);
    // A layer of the tower: four of 1024 → 1024, one → 4096, one back. The last of 24 gets no gradient.
    let layer = 4 * 32 * 2048 + 2 * 32 * 5120 + 5 * 1024 + 4096;
    assert_eq!(numbers(&plan, "LoRA in the vision tower"), [24 * layer, 23 * layer]);
    assert_eq!(numbers(&plan, "LoRA in the projector"), [32 * 3584 + 32 * 5120 + 2 * 2560; 2]);
    assert_eq!(numbers(&plan, "projector"), [9_180_160, 0]);

    let plan = lora(&["--modules_to_save", "embed_tokens,lm_head"]);
    assert_eq!(numbers(&plan, "token embeddings"), [388_956_160; 2]);
    assert_eq!(numbers(&plan, "norm and head"), [388_956_160 + 2560, 388_956_160]);
    assert_eq!(numbers(&plan, "projector"), [9_180_160, 0]);
}

/// Published models, and their parameters as transformers 5.24 counts them on its meta device: the tower's (its pooling head left
/// out), those of its last layer and last norm, the language model's, and those of LoRA of rank 32 on q, k, v and o.
const TOWERS: [(&str, u64, u64); 2] =
    [("clip-vit-large-patch14-336", 303_507_456, 12_598_272), ("siglip-so400m-patch14-384", 412_987_248, 15_241_808)];
const LANGUAGE_MODELS: [(&str, u64, u64); 5] = [
    ("qwen1.5-4b-chat", 3_950_369_280, 26_214_400),
    ("qwen2.5-3b-instruct", 3_085_938_688, 14_745_600),
    ("qwen3-4b", 4_022_468_096, 23_592_960),
    ("llama-3.2-3b-instruct", 3_212_749_824, 18_350_080),
    ("vicuna-7b-v1.5", 6_738_415_616, 33_554_432),
];

/// The projector's parameters, by the widths of tower and language model.
const PROJECTORS: [(&str, &str, u64); 10] = [
    ("clip-vit-large-patch14-336", "qwen1.5-4b-chat", 9_180_160),
    ("clip-vit-large-patch14-336", "qwen2.5-3b-instruct", 6_295_552),
    ("clip-vit-large-patch14-336", "qwen3-4b", 9_180_160),
    ("clip-vit-large-patch14-336", "llama-3.2-3b-instruct", 12_589_056),
    ("clip-vit-large-patch14-336", "vicuna-7b-v1.5", 20_979_712),
    ("siglip-so400m-patch14-384", "qwen1.5-4b-chat", 9_507_840),
    ("siglip-so400m-patch14-384", "qwen2.5-3b-instruct", 6_557_696),
    ("siglip-so400m-patch14-384", "qwen3-4b", 9_507_840),
    ("siglip-so400m-patch14-384", "llama-3.2-3b-instruct", 12_982_272),
    ("siglip-so400m-patch14-384", "vicuna-7b-v1.5", 21_504_000),
];

#[test]
fn parameters_of_published_models_are_exact() {
    let mut planned = 0;
    for (tower, vision, unreachable) in TOWERS {
        for (language_model, text, text_lora) in LANGUAGE_MODELS {
            let is_this = |entry: &&(&str, &str, u64)| (entry.0, entry.1) == (tower, language_model);
            let projector = PROJECTORS.iter().find(is_this).expect("an entry for each pair").2;
            let all = vision + projector + text;
            let what = format!("{tower} with {language_model}");
            let none = plan_of(tower, language_model, &["--train_type", "none"]);
            assert_eq!(numbers(&none, "together"), [all, all - unreachable], "{what}");
            assert_eq!(numbers(&none, "vision tower")[0], vision, "{what}");
            let lora = plan_of(tower, language_model, &["--train_type", "use_lora"]);
            assert_eq!(numbers(&lora, "LoRA in the language model"), [text_lora; 2], "{what}");
            assert_eq!(numbers(&lora, "projector"), [projector; 2], "{what}");
            assert_eq!(numbers(&lora, "together"), [all + text_lora, text_lora + projector], "{what}");
            planned += 1;
        }
    }
    println!("{planned} pairs have transformers' numbers of parameters");
    assert_eq!(planned, PROJECTORS.len());
}

#[test]
fn an_epoch_of_the_real_job_has_4652_steps() {
    let plan = real_plan(&["--num_train_epochs", "3"]);
    assert_eq!(numbers(&plan, "rows"), [595_375]);
    assert_eq!(numbers(&plan, "an epoch"), [4_652]);
    assert!(plan.contains("4,651 full ones and one of the remaining 47 rows"), "{plan}");
    assert_eq!(numbers(&plan, "the run"), [13_956]);
    let other = real_plan(&["--rows", "1280", "--max_steps", "5"]);
    assert_eq!((numbers(&other, "an epoch"), numbers(&other, "the run")), (vec![10], vec![5]));
}

#[test]
fn a_recipe_is_planned_and_a_missing_model_says_what_to_give() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/recipes/llava-qwen1.5-4b-lora.toml");
    let plan = |more: &[&str]| {
        let mut command = Command::new(program("train"));
        command.arg("plan").arg(&recipe).args(more);
        command
    };
    let clip = tests::project_file("configs/clip-vit-large-patch14-336");
    let qwen = tests::project_file("configs/qwen1.5-4b-chat");
    let (clip, qwen) = (clip.to_str().expect("UTF-8"), qwen.to_str().expect("UTF-8"));
    let text = planned(&mut plan(&["--vision-tower", clip, "--language-model", qwen, "--nproc", "2"]));
    assert!(text.contains("64 rows = 2 ranks × 4 rows × 8 micro-steps"), "{text}");
    let error = fail(Command::new(program("train")).arg("plan"));
    assert!(error.contains("--vision-tower") && error.contains("config.json"), "{error}");
}

/// Neither the model nor the first stage's output is there yet.
#[test]
fn every_stage_of_a_two_stage_recipe_is_planned() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/recipes/llava-qwen1.5-4b-two-stage.toml");
    let mut command = Command::new(program("train"));
    command
        .arg("plan")
        .arg(&recipe)
        .arg("--vision-tower")
        .arg(tests::project_file("configs/clip-vit-large-patch14-336"));
    let text = planned(command.arg("--language-model").arg(tests::project_file("configs/qwen1.5-4b-chat")));
    let (first, second) = text.split_once("stage 2 of 2: ").expect("two stages");
    assert!(first.starts_with("stage 1 of 2: runs/llava-qwen1.5-4b-two-stage/1-projector"), "{first}");
    assert!(second.starts_with("runs/llava-qwen1.5-4b-two-stage/2-lora"), "{second}");
    assert_eq!(numbers(first, "together"), [4_263_056_896, 9_180_160]);
    assert_eq!(numbers(second, "together"), [4_263_056_896 + 26_214_400, 26_214_400 + 9_180_160]);
    assert!(second.contains("the output of an earlier stage"), "{second}");
    let error = fail(Command::new(program("train")).arg(&recipe));
    assert!(error.contains("2 [[train]] stages") && error.contains("pipelines run"), "{error}");
}

/// The forecast against what a run really takes, on a model whose parts all weigh something. The long form, on the real
/// pretrained backbones, is tests/bench/memory.sh.
#[test]
fn the_forecast_of_memory_is_within_15_percent_of_the_peak() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, shards) = (folder.path().join("llava"), folder.path().join("shards"));
    medium_model(folder.path(), &model, &shards);
    for (train_type, more) in [
        ("none", &["--per_device_train_batch_size", "8"][..]),
        ("freeze_vision", &["--per_device_train_batch_size", "4", "--nproc", "2"]),
        ("use_lora", &["--per_device_train_batch_size", "16", "--dataloader_num_workers", "1"]),
        ("use_lora", &["--per_device_train_batch_size", "8", "--use_dora", "--lora_target_modules", "all-linear"]),
        ("projector", &["--per_device_train_batch_size", "16", "--gradient_checkpointing", "true"]),
    ] {
        let output = tempfile::tempdir_in(folder.path()).expect("a folder");
        let output = output.path().join("run");
        let arguments = |command: &mut Command| {
            command.arg("--model_name_or_path").arg(&model).arg("--data_path").arg(&shards);
            command.arg("--output_dir").arg(&output).args(["--train_type", train_type, "--max_steps", "2"]);
            command.args(["--save_strategy", "no", "--logging_steps", "1"]).args(more);
        };
        let mut plan = Command::new(program("train"));
        arguments(plan.arg("plan"));
        let plan = String::from_utf8(succeed(&mut plan).stdout).expect("UTF-8");
        let ranks = if more.contains(&"--nproc") { 2.0 } else { 1.0 };
        let forecast = ranks * bytes(&plan, "peak");
        let mut run = Command::new(program("train"));
        arguments(&mut run);
        succeed(&mut run);
        let lines = json_lines(&output.join("metrics.jsonl"));
        let peak = lines.last().and_then(|line| line["peak_rss_mb"].as_f64()).expect("a peak") * 1024.0 * 1024.0;
        println!(
            "{train_type} {more:?}: forecast {:.0} MB, peak {:.0} MB, {:+.1} %",
            forecast / 1e6,
            peak / 1e6,
            100.0 * (forecast / peak - 1.0)
        );
        assert!((forecast / peak - 1.0).abs() <= 0.15, "{train_type}: forecast {forecast}, peak {peak}\n{plan}");
    }
}

/// A LLaVA of 30 million parameters with 64 features an image, and shards for it.
fn medium_model(folder: &Path, model: &Path, shards: &Path) {
    let tiny = reference("tiny/llava");
    let mut config = LlavaConfig::read(&tiny).expect("the tiny config");
    config.vision = VisionConfig {
        hidden_size: 256,
        intermediate_size: 1024,
        num_hidden_layers: 5,
        image_size: 112,
        ..config.vision
    };
    config.text =
        TextConfig { hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 7, vocab_size: 8192, ..config.text };
    std::fs::create_dir(model).expect("a folder");
    save_model(&Llava::random(&config, 0, &cpu()), &config, model, usize::MAX).expect("weights are written");
    copy_processor_files(&tiny, model).expect("processor files are copied");
    let path = model.join("preprocessor_config.json");
    let text = std::fs::read_to_string(&path).expect("the image processor's settings");
    std::fs::write(&path, text.replace(": 56", ": 112")).expect("written");
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(model).arg("--data").arg(reference("pictures"));
    succeed(command.arg("--output").arg(shards).current_dir(folder));
}

/// Bytes behind a name, printed with a unit.
fn bytes(plan: &str, name: &str) -> f64 {
    let line = plan.lines().find_map(|line| line.trim_start().strip_prefix(name)).expect("the line is there");
    let mut words = line.split_whitespace();
    let value: f64 = words.next().expect("a number").parse().expect("a number");
    let unit = words.next().expect("a unit");
    let unit = ["B", "kB", "MB", "GB"].iter().position(|&known| known == unit).expect("a unit");
    value * 1000f64.powi(unit as i32)
}

/// 576 features of 1024 values, 2 bytes each, of 595,375 images.
#[test]
fn kept_vision_features_of_the_real_job_are_counted_before_it_starts() {
    let features =
        |plan: &str| plan.lines().find(|line| line.trim_start().starts_with("vision features")).map(String::from);
    let plan = real_plan(&["--train_type", "use_lora", "--cache_vision_features", "f16"]);
    let line = features(&plan).expect("a line");
    println!("{line}");
    assert!(line.contains("702") && line.contains("GB beside the shards"), "{line}");
    assert!(plan.contains("the run, the shards and the vision features need"), "{plan}");
    assert_eq!(features(&real_plan(&["--train_type", "use_lora"])), None);
}

/// A folder that is named has shards, or is made by the recipe: a wrong name is no plan of another job.
#[test]
fn a_folder_without_shards_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = |name: &str| tests::project_file(&format!("configs/{name}"));
    let plan = || {
        let mut command = Command::new(program("train"));
        command.arg("plan").arg("--vision-tower").arg(config("clip-vit-large-patch14-336"));
        command
            .arg("--language-model")
            .arg(config("qwen1.5-4b-chat"))
            .arg("--output_dir")
            .arg(folder.path().join("run"));
        command
    };
    let data = folder.path().join("shardz");
    let data = data.to_str().expect("UTF-8");
    let error = fail(plan().args(["--data_path", data]));
    for words in ["shardz: found no such folder", "--rows N", "595,375"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    std::fs::create_dir(data).expect("created");
    let error = fail(plan().args(["--data_path", data]));
    assert!(error.contains("shardz: found no index.json"), "{error}");
    let text = planned(plan().args(["--data_path", data, "--rows", "1280"]));
    assert_eq!(numbers(&text, "rows"), [1280]);
    let text = planned(&mut plan());
    assert!(text.contains("because no --data_path is given"), "{text}");

    // Shards that the recipe makes are not there before it has run.
    let recipe = folder.path().join("recipe.toml");
    for (shards, is_planned) in [(data, true), ("elsewhere", false)] {
        let text = format!("[data]\ndir = \"d\"\nshards = \"{shards}\"\n[train]\ndata_path = \"{data}\"\n");
        std::fs::write(&recipe, text).expect("written");
        let mut command = Command::new(program("train"));
        command.arg("plan").arg(&recipe).arg("--vision-tower").arg(config("clip-vit-large-patch14-336"));
        command
            .arg("--language-model")
            .arg(config("qwen1.5-4b-chat"))
            .arg("--output_dir")
            .arg(folder.path().join("run"));
        match is_planned {
            true => assert!(planned(&mut command).contains("because there are no shards yet")),
            false => assert!(fail(&mut command).contains("no index.json")),
        }
    }
}

/// The memory of a GPU is compared where it is known: of this machine's, or of the one that is given.
#[test]
fn the_memory_of_a_gpu_is_compared_or_said_not_to_be() {
    let plan = |more: &[&str]| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = |name: &str| tests::project_file(&format!("configs/{name}"));
        let mut command = Command::new(program("train"));
        command.arg("plan").arg("--vision-tower").arg(config("clip-vit-large-patch14-336"));
        command.arg("--language-model").arg(config("qwen1.5-4b-chat"));
        command.arg("--output_dir").arg(folder.path().join("run"));
        if !more.contains(&"--device") {
            command.args(["--device", "cuda", "--bf16", "true"]);
        }
        command.args(["--save_strategy", "no", "--rows", "10"]).args(more).env("CUDA_VISIBLE_DEVICES", "-1");
        let output = command.output().expect("it starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).expect("UTF-8"))
    };
    let memory = |text: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with("memory  ")).map(str::to_string);
        line.unwrap_or_else(|| panic!("no line of memory in\n{text}"))
    };
    let (_, text) = plan(&[]);
    assert!(memory(&text).contains("NOT CHECKED") && memory(&text).contains("--gpu-memory"), "{text}");
    let (_, text) = plan(&["--gpu-memory", "80"]);
    assert!(memory(&text).contains("fits: a rank needs") && memory(&text).contains("its GPU has 80.0 GB"), "{text}");
    let (code, text) = plan(&["--gpu-memory", "4", "--nproc", "2"]);
    assert!(code == Some(3) && memory(&text).contains("DOES NOT FIT: a rank needs"), "{code:?}: {text}");
    assert!(text.contains("helps: ") && !text.contains("--nproc 1"), "{text}");
    assert_eq!(plan(&["--gpu-memory", "0"]).0, Some(2));
    let (code, text) = plan(&["--gpu-memory", "80", "--device", "cpu"]);
    assert!(code == Some(2) && text.contains("--gpu-memory: found 80 GB, which has no effect"), "{code:?}: {text}");
}

/// What a GPU has to have for the real job: the goals of its recipes. How near the forecast is to what the programs ask of a driver
/// is in `tests/gpu/budget`.
#[test]
fn the_real_job_fits_its_gpus() {
    let gpu = ["--device", "cuda", "--bf16", "true", "--nproc", "1", "--gradient_accumulation_steps", "1"];
    let peak = |more: &[&str]| {
        let plan = real_plan(&[&gpu, more].concat());
        assert!(plan.contains("memory of each GPU"), "{plan}");
        println!("{more:?}: {:.1} GB", bytes(&plan, "peak") / 1e9);
        bytes(&plan, "peak")
    };
    let lora = peak(&["--train_type", "use_lora", "--per_device_train_batch_size", "8"]);
    let small = ["--per_device_train_batch_size", "1", "--gradient_checkpointing", "true"];
    let small = peak(&[&["--train_type", "use_lora"], &small[..]].concat());
    let full = peak(&["--train_type", "none", "--per_device_train_batch_size", "8"]);
    assert!(lora < 40e9 && small < 16e9 && full < 141e9, "{lora} {small} {full}");
    assert!(
        small > 8.5e9 && lora > small && full > 4.2e9 * 18.0,
        "weights, masters, gradients, moments: {lora} {small} {full}"
    );
}
