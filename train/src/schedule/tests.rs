use super::*;

fn config(kind: ScheduleType, kwargs: &str) -> Config {
    let mut config = crate::config::tests::defaults();
    config.lr_scheduler_type = kind;
    config.learning_rate = 2e-3;
    config.warmup_steps = 2.0;
    config.lr_num_cycles = 2;
    config.lr_power = 2.0;
    config.lr_scheduler_kwargs = kwargs.parse().expect("arguments");
    config
}

fn schedule(kind: ScheduleType) -> Schedule {
    Schedule::new(&config(kind, ""), 8).expect("a schedule")
}

fn compare(name: &str, schedule: &Schedule, expected: &[f64]) {
    for (step, &expected) in expected.iter().enumerate() {
        let found = schedule.learning_rate(step as u64);
        assert!((found - expected).abs() <= 1e-15, "{name} at {step}: {found} where {expected} is expected");
    }
}

/// Values printed by transformers 5.24's `get_scheduler` with the same numbers.
#[test]
fn equals_transformers() {
    let linear = [0.0, 0.001, 0.002, 0.0016666666666666668, 0.0013333333333333333, 0.001, 0.0006666666666666666];
    let found: Vec<f64> = (0..7).map(|step| schedule(ScheduleType::Linear).learning_rate(step)).collect();
    assert_eq!(found, linear);
    for (kind, step, expected) in EXPECTED {
        let found = schedule(kind).learning_rate(step);
        assert!((found - expected).abs() <= 1e-15, "{kind:?} at {step}: {found} where {expected} is expected");
    }
}

const EXPECTED: [(ScheduleType, u64, f64); 11] = [
    (ScheduleType::Constant, 0, 0.002),
    (ScheduleType::ConstantWithWarmup, 1, 0.001),
    (ScheduleType::ConstantWithWarmup, 5, 0.002),
    (ScheduleType::Cosine, 3, 0.001866025403784439),
    (ScheduleType::Cosine, 7, 0.0001339745962155613),
    (ScheduleType::CosineWithRestarts, 4, 0.0005000000000000002),
    (ScheduleType::CosineWithRestarts, 8, 0.0),
    (ScheduleType::Polynomial, 5, 0.000500075),
    (ScheduleType::Polynomial, 9, 1e-7),
    (ScheduleType::InverseSqrt, 3, 0.0016329931618554523),
    (ScheduleType::InverseSqrt, 7, 0.0010690449676496977),
];

/// The same, with `scheduler_specific_kwargs`: schedule, arguments, steps of warm-up, the first nine rates.
#[test]
#[rustfmt::skip]
fn arguments_are_those_of_transformers() {
    for (kind, kwargs, warmup, expected) in [
        (ScheduleType::Cosine, r#"{"num_cycles": 1.5}"#, 2.0,
         [0.0, 0.001, 0.002, 0.001, 0.0, 0.0009999999999999998, 0.002, 0.0010000000000000002, 0.0]),
        (ScheduleType::CosineWithRestarts, r#"{"num_cycles": "3"}"#, 2.0,
         [0.0, 0.001, 0.002, 0.001, 0.002, 0.001, 0.002, 0.001, 0.0]),
        (ScheduleType::Polynomial, r#"{"lr_end": 1e-4, "power": 3.0}"#, 2.0,
         [0.0, 0.001, 0.002, 0.0011995370370370374, 0.0006629629629629632, 0.0003375, 0.0001703703703703704,
          0.00010879629629629629, 0.0001]),
        (ScheduleType::InverseSqrt, r#"{"timescale": 50}"#, 2.0,
         [0.0, 0.001, 0.002, 0.0019802950859533486, 0.00196116135138184, 0.0019425717247145285, 0.0019245008972987522,
          0.0019069251784911846, 0.0018898223650461359]),
        (ScheduleType::CosineWithMinLr, r#"{"min_lr": 5e-4}"#, 2.0,
         [0.0, 0.001, 0.002, 0.001899519052838329, 0.0016250000000000001, 0.00125, 0.0008750000000000002,
          0.0006004809471616711, 0.0005]),
        (ScheduleType::CosineWithMinLr, r#"{"min_lr_rate": 0.1, "num_cycles": 1.0}"#, 2.0,
         [0.0, 0.001, 0.002, 0.0015500000000000002, 0.0006500000000000003, 0.0002, 0.0006499999999999998,
          0.0015500000000000002, 0.002]),
        (ScheduleType::CosineWarmupWithMinLr, r#"{"min_lr_rate": 0.1}"#, 3.0,
         [0.0006666666666666666, 0.0013333333333333333, 0.002, 0.0018281152949374527, 0.0013781152949374528,
          0.0008218847050625476, 0.00037188470506254747, 0.0002, 0.00037188470506254725]),
        (ScheduleType::CosineWarmupWithMinLr, r#"{"min_lr": 2e-4, "warmup_lr_rate": 0.2}"#, 3.0,
         [0.0004, 0.0012000000000000001, 0.002, 0.0018281152949374527, 0.0013781152949374528, 0.0008218847050625476,
          0.00037188470506254747, 0.0002, 0.00037188470506254725]),
        (ScheduleType::WarmupStableDecay, r#"{"num_decay_steps": 4, "min_lr_ratio": 0.1}"#, 2.0,
         [0.0002, 0.0011, 0.002, 0.002, 0.002, 0.0017363961030678928, 0.0011, 0.0004636038969321073, 0.0002]),
        (ScheduleType::WarmupStableDecay,
         r#"{"num_decay_steps": 3, "num_stable_steps": 2, "warmup_type": "cosine", "decay_type": "1-sqrt"}"#, 3.0,
         [0.0, 0.0004999999999999999, 0.0014999999999999998, 0.002, 0.002, 0.002, 0.0008452994616207486,
          0.0003670068381445479, 0.0]),
        (ScheduleType::WarmupStableDecay,
         r#"{"num_decay_steps": 3, "warmup_type": "1-sqrt", "decay_type": "linear", "min_lr_ratio": 0.25}"#, 2.0,
         [0.0005, 0.0009393398282201786, 0.002, 0.002, 0.002, 0.002, 0.0015, 0.001, 0.0005]),
    ] {
        let config = Config { warmup_steps: warmup, ..config(kind, kwargs) };
        config.lr_scheduler_kwargs.check(kind, config.learning_rate).expect("arguments of the schedule");
        compare(&format!("{kind:?} {kwargs}"), &Schedule::new(&config, 8).expect("a schedule"), &expected);
    }
}

#[test]
fn arguments_that_a_schedule_has_not_or_misses_are_refused() {
    for (kind, kwargs, named) in [
        (ScheduleType::Linear, r#"{"num_cycles": 2}"#, "num_cycles"),
        (ScheduleType::Cosine, r#"{"min_lr": 1e-5}"#, "min_lr"),
        (ScheduleType::CosineWithMinLr, "", "min_lr or min_lr_rate"),
        (ScheduleType::CosineWithMinLr, r#"{"min_lr": 1e-5, "min_lr_rate": 0.1}"#, "one of the two"),
        (ScheduleType::CosineWithMinLr, r#"{"min_lr": 1e-2}"#, "at most learning_rate"),
        (ScheduleType::CosineWithMinLr, r#"{"min_lr_rate": 1.5}"#, "at most 1"),
        (ScheduleType::WarmupStableDecay, r#"{"min_lr_ratio": 0.1}"#, "num_decay_steps"),
        (ScheduleType::InverseSqrt, r#"{"timescale": 0}"#, "above 0"),
    ] {
        let error = config(kind, kwargs).lr_scheduler_kwargs.check(kind, 2e-3).expect_err(kwargs).to_string();
        assert!(error.contains(named), "{kind:?} {kwargs}: {error}");
    }
    for text in [r#"{"cycles": 2}"#, r#"{"decay_type": "cubic"}"#, "num_cycles=2", r#"{"num_cycles": [1]}"#] {
        assert!(text.parse::<SchedulerKwargs>().is_err(), "{text}");
    }
}

/// What DeepSpeed 0.19.8's `lr_schedules.py` sets after each of ten calls of `step()`.
#[test]
#[rustfmt::skip]
fn equals_deepspeed() {
    use DeepspeedKind::{WarmupCosineLR, WarmupDecayLR, WarmupLR};
    for (kind, linear, [low, low_ratio, end_ratio], highest, warmup, expected) in [
        (WarmupLR, false, [1e-4, 0.0, 0.0], 1e-3, 4,
         [0.0001, 0.00055, 0.0008132331253245204, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001]),
        (WarmupLR, true, [0.0; 3], 2e-3, 3,
         [0.0, 0.0006666666666666666, 0.0013333333333333333, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002]),
        (WarmupDecayLR, false, [1e-5, 0.0, 0.0], 2e-3, 3,
         [1e-05, 0.0012655502096072001, 0.002, 0.002, 0.0016020000000000001, 0.001204, 0.0008060000000000001,
          0.00040800000000000005, 1e-05, 1e-05]),
        (WarmupDecayLR, false, [0.0; 3], 2e-3, 1,
         [0.0, 0.002, 0.002, 0.0016666666666666668, 0.0013333333333333333, 0.001, 0.0006666666666666666,
          0.0003333333333333333, 0.0, 0.0]),
        (WarmupCosineLR, false, [0.0, 0.1, 0.05], 2e-3, 3,
         [0.0002, 0.0013356735564286231, 0.002, 0.0018185661446562, 0.0013435661446562002, 0.0007564338553438,
          0.00028143385534380006, 0.0001, 0.0001, 0.0001]),
        (WarmupCosineLR, true, [0.0, 0.0, 0.0001], 2e-3, 2,
         [0.0, 0.001, 0.0018660388012440602, 0.00150005, 0.0010001, 0.0005001500000000002, 0.00013416119875593973,
          2.0000000000000002e-07, 2.0000000000000002e-07, 2.0000000000000002e-07]),
    ] {
        let schedule = DeepspeedSchedule {
            kind,
            warmup_type: if linear { WarmupType::Linear } else { WarmupType::Log },
            warmup_min_lr: low,
            warmup_min_ratio: low_ratio,
            cos_min_ratio: end_ratio,
            total_num_steps: None,
        };
        let mut config = config(ScheduleType::Linear, "");
        (config.learning_rate, config.warmup_steps) = (highest, f64::from(warmup));
        config.deepspeed_scheduler = Some(schedule);
        compare(&format!("{kind:?}, warm-up {warmup}"), &Schedule::new(&config, 8).expect("a schedule"), &expected);
    }
}

#[test]
fn a_file_for_another_number_of_steps_is_refused() {
    let mut config = config(ScheduleType::Linear, "");
    config.deepspeed_scheduler = Some(DeepspeedSchedule {
        kind: DeepspeedKind::WarmupDecayLR,
        warmup_type: WarmupType::Log,
        warmup_min_lr: 0.0,
        warmup_min_ratio: 0.0,
        cos_min_ratio: 0.0,
        total_num_steps: Some(100),
    });
    assert!(Schedule::new(&config, 100).is_ok());
    let error = Schedule::new(&config, 99).expect_err("refused").to_string();
    assert!(error.contains("total_num_steps: found 100, expected 99"), "{error}");
}

#[test]
fn steps_of_another_length_go_on_by_the_fraction_done() {
    let rate = |step, schedule: &Schedule| schedule.learning_rate(step);
    let whole = Schedule::new(&config(ScheduleType::Cosine, ""), 8).expect("a schedule");
    let base = |last_step| ScheduleBase { global_step: 4, position: 4.0, last_step, schedule_steps: 8 };
    // Twice the rows: two steps for the last four. Half the rows: eight steps.
    let (longer, shorter) = (whole.clone().on_from(Some(base(6))), whole.clone().on_from(Some(base(12))));
    for (found, expected) in [
        (rate(4, &longer), rate(4, &whole)),
        (rate(5, &longer), rate(6, &whole)),
        (rate(6, &longer), rate(8, &whole)),
        (rate(4, &shorter), rate(4, &whole)),
        (rate(6, &shorter), rate(5, &whole)),
        (rate(12, &shorter), rate(8, &whole)),
        (rate(3, &whole.clone().on_from(None)), rate(3, &whole)),
    ] {
        assert_eq!(found, expected);
    }
}
