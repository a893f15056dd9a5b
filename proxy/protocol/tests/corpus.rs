//! The fuzz targets' checks over the inputs in `fuzz/corpus`: what clients really send, what was found to be awkward,
//! and what once broke something.
#![expect(
    clippy::disallowed_methods,
    reason = "the corpus is files; the wall is around the library"
)]

mod checks;

use std::fs;
use std::path::Path;

#[test]
fn every_check_holds_over_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, check) in checks::CHECKS {
        let inputs =
            fs::read_dir(corpus.join(target)).unwrap_or_else(|_| panic!("no corpus for {target}"));
        let mut count = 0;
        for input in inputs {
            let input = input.unwrap().path();
            println!("{}", input.display()); // shown if the check fails
            check(&fs::read(input).unwrap());
            count += 1;
        }
        assert!(count >= 3, "{target} has {count} inputs");
    }
}

#[test]
fn every_fuzz_target_has_a_check() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut names: Vec<String> = fs::read_dir(targets)
        .unwrap()
        .map(|target| {
            target
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    let mut checked = checks::CHECKS.map(|(name, _)| name);
    names.sort_unstable();
    checked.sort_unstable();
    assert_eq!(names, checked);
}
