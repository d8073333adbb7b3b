//! What will work on a machine, by what was found on it.

use super::{Finding, State};

/// A job, and what has to be done first, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ability {
    /// The job.
    pub what: &'static str,
    /// The next step; `None`: it works now.
    pub next: Option<String>,
}

/// The jobs, each with the things that only it needs. Things that are in the way of every job count for all.
const JOBS: [(&str, &[&str]); 6] = [
    ("pipelines quickstart; preprocess, train and infer on this processor", &[]),
    ("several ranks on this machine: train --nproc N", &[]),
    ("several machines: train under mpirun or Slurm", &["MPI"]),
    ("an NVIDIA GPU: train and infer --device cuda:N", &["GPU"]),
    ("models by their Hugging Face name (openai/clip-vit-large-patch14-336)", &["hub cache", "hub server"]),
    ("infer serve", &["port"]),
];

/// The jobs of this project on a machine with these findings.
pub fn of(findings: &[Finding]) -> Vec<Ability> {
    let for_all = |finding: &&Finding| finding.state == State::Bad;
    let next = |needs: &[&str]| {
        let in_the_way = findings.iter().find(for_all).or_else(|| {
            findings.iter().find(|finding| needs.contains(&finding.subject) && finding.state == State::Absent)
        });
        in_the_way.map(|finding| finding.next.clone().unwrap_or_default())
    };
    JOBS.iter().map(|(what, needs)| Ability { what, next: next(needs) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(findings: &[Finding]) -> Vec<bool> {
        of(findings).iter().map(|ability| ability.next.is_none()).collect()
    }

    #[test]
    fn a_job_works_where_nothing_that_it_needs_is_missing() {
        let good = [Finding::good("disk", "1 TB"), Finding::good("MPI", "Open MPI")];
        assert_eq!(states(&good), [true; 6]);
        let no_mpi = [Finding::good("disk", "1 TB"), Finding::absent("MPI", "none", "install one")];
        assert_eq!(states(&no_mpi), [true, true, false, true, true, true]);
        let full = [Finding::bad("disk", "0 B", "free some"), Finding::absent("MPI", "none", "install one")];
        assert_eq!(states(&full), [false; 6]);
        assert!(of(&full).iter().all(|ability| ability.next.as_deref() == Some("free some")));
    }
}
