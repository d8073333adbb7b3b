//! `pipelines doctor`, on machines with and without each thing that it looks for.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use tests::program;

fn doctor(folder: &Path) -> Command {
    let mut command = Command::new(program("pipelines"));
    command.arg("doctor").current_dir(folder).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
    // The server is one of this test's own, or none.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hub"));
    for proxy in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"] {
        command.env_remove(proxy);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The line of a thing, or of a job.
fn line<'a>(report: &'a str, subject: &str) -> &'a str {
    report.lines().find(|line| line.contains(subject)).unwrap_or_else(|| panic!("no line with {subject}: {report}"))
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn what_is_missing_is_named_with_the_next_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let mut command = doctor(folder.path());
    command.args(["--port", &port]).env("LLAVA_MPI_LIBRARY", "/no/such/libmpi.so");
    let report = succeeded(command.output().expect("it starts"));
    println!("{report}");
    for subject in ["processor", "memory", "disk", "programs"] {
        assert!(line(&report, subject).starts_with("  ok"), "{report}");
    }
    assert!(line(&report, "processor").contains("kernels"), "{report}");
    for subject in ["MPI  ", "port  ", "hub server"] {
        assert!(line(&report, subject).starts_with("  --"), "{report}");
    }
    assert!(line(&report, "hub cache").contains("0 models"), "{report}");
    assert!(line(&report, "pipelines quickstart").starts_with("  yes"), "{report}");
    for (job, remedy) in [("mpirun", "openmpi-bin"), ("infer serve", "--port"), ("Hugging Face name", "HF_HUB_OFFLINE")]
    {
        let (_, rest) = report.split_once("what will work").expect("the jobs");
        let mut lines = rest.lines().skip_while(|line| !line.contains(job));
        assert!(lines.next().is_some_and(|line| line.starts_with("  no")), "{job}: {report}");
        assert!(lines.next().is_some_and(|line| line.contains("next: ") && line.contains(remedy)), "{job}: {report}");
    }
}

#[test]
fn what_is_there_works() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir_all(folder.path().join("hub/hub/models--openai--clip")).expect("created");
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", server.local_addr().expect("an address"));
    let mut command = doctor(folder.path());
    command.args(["--port", "0"]).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &url);
    let report = succeeded(command.output().expect("it starts"));
    for (subject, found) in [("hub server", "answers"), ("hub cache", "1 model"), ("port  ", "free")] {
        assert!(line(&report, subject).starts_with("  ok") && line(&report, subject).contains(found), "{report}");
    }
    let has_mpi = line(&report, "MPI  ").starts_with("  ok");
    assert_eq!(line(&report, "mpirun").starts_with("  yes"), has_mpi, "{report}");
    assert!(line(&report, "Hugging Face name").starts_with("  yes"), "{report}");
}

/// A folder that takes no files is in the way of every job.
#[test]
fn a_disk_that_cannot_be_written_is_a_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = doctor(folder.path()).args(["--output", "/proc/runs"]).output().expect("it starts");
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(line(&told, "  disk").starts_with("  !!") && line(&told, "  disk").contains("/proc"), "{told}");
    assert!(told.contains("next: give --output a folder that you may write to"), "{told}");
    assert!(!told.contains("  yes"), "{told}");
}
