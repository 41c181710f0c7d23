//! The dependencies between the modules of the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Words, and the modules that may use them. `boot` connects the modules, and `local`
/// replaces the external services.
const WORDS: [(&str, &[&str]); 13] = [
    (
        "aws_sdk_dynamodb",
        &["store/dynamodb/", "boot/", "local/", "telemetry/aws.rs"],
    ),
    ("aws_sdk_secretsmanager", &["boot/", "local/"]),
    ("opentelemetry", &["telemetry/"]),
    ("metrics_exporter_prometheus", &["telemetry/"]),
    ("momento::", &["cache/", "boot/", "local/", "cli/"]),
    ("momento_protos", &["cache/", "local/"]),
    (
        "tonic",
        &[
            "grpc/",
            "boot/",
            "cache/momento/lookups.rs",
            "transport/",
            "proto.rs",
            "cli/",
            "local/",
            "peer/client.rs",
            "telemetry/traces.rs",
        ],
    ),
    ("jsonwebtoken", &["auth/", "config"]),
    ("x509_parser", &["auth/"]),
    ("reqwest", &["auth/"]),
    ("rustls", &["transport/", "peer/"]),
    ("account_v1", &["grpc/", "boot/", "proto.rs", "cli/"]),
    ("prost_reflect", &["cli/"]),
];

/// Modules, and the words that name modules above them, which they must not use.
const UPWARDS: [(&str, &[&str]); 4] = [
    ("domain/", &["crate::", "tokio", "prost", "uuid::", "serde"]),
    (
        "store/",
        &[
            "crate::coherence",
            "crate::cache",
            "crate::service",
            "crate::grpc",
        ],
    ),
    (
        "cache/",
        &[
            "crate::coherence",
            "crate::store",
            "crate::service",
            "crate::grpc",
            "crate::domain",
        ],
    ),
    ("coherence/", &["crate::service", "crate::grpc"]),
];

#[test]
fn each_sdk_is_named_in_its_own_module_only() {
    for (path, code) in sources() {
        for (word, modules) in WORDS {
            let is_allowed = modules.iter().any(|module| path.starts_with(module));
            assert!(is_allowed || !code.contains(word), "{path} uses {word}");
        }
    }
}

#[test]
fn no_module_names_the_modules_above_it() {
    for (path, code) in sources() {
        for (module, words) in UPWARDS {
            for word in words {
                let is_upwards = path.starts_with(module) && code.contains(word);
                assert!(!is_upwards, "{path} uses {word}");
            }
        }
    }
}

#[test]
fn no_module_depends_on_itself_through_others() {
    let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, code) in sources() {
        let (module, _) = path.split_once('/').unwrap_or((&path, ""));
        let module = module.trim_end_matches(".rs").to_owned();
        dependencies
            .entry(module)
            .or_default()
            .extend(modules_in(&code));
    }
    assert!(dependencies["grpc"].contains("service") && dependencies["boot"].contains("grpc"));
    for (module, direct) in &dependencies {
        let others = direct.iter().filter(|other| *other != module);
        let mut reached: BTreeSet<_> = others.clone().collect();
        let mut waiting: Vec<_> = others.collect();
        while let Some(next) = waiting.pop() {
            let further = dependencies.get(next).into_iter().flatten();
            waiting.extend(further.filter(|further| reached.insert(*further)));
        }
        assert!(
            !reached.contains(module),
            "{module} depends on itself through {direct:?}"
        );
    }
}

/// Modules that code names after `crate::`, alone or in a group of imports.
fn modules_in(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, named) in code.match_indices("crate::") {
        let rest = &code[at + named.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            modules.insert(first_word(rest));
            continue;
        };
        let (group, _) = group.split_once(';').unwrap();
        let mut depth = 0;
        let members = group.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        modules.extend(members.map(first_word));
    }
    modules.remove("");
    modules
}

fn first_word(text: &str) -> String {
    let is_of_word = |c: &char| c.is_alphanumeric() || *c == '_';
    text.trim_start().chars().take_while(is_of_word).collect()
}

/// Each module that fails has an `Error`.
#[test]
fn no_two_types_have_the_same_name() {
    const KEYWORDS: [&str; 4] = ["struct", "enum", "trait", "type"];
    let mut definitions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, code) in sources() {
        for line in code.lines() {
            let mut words = line.split(' ').skip_while(|word| word.starts_with("pub"));
            let is_definition = words.next().is_some_and(|word| KEYWORDS.contains(&word));
            if let Some(name) = words.next().filter(|_| is_definition) {
                let paths = definitions.entry(first_word(name)).or_default();
                paths.insert(path.clone());
            }
        }
    }
    definitions.remove("Error");
    assert!(definitions.len() > 200, "{}", definitions.len());
    definitions.retain(|_, paths| paths.len() > 1);
    assert!(definitions.is_empty(), "{definitions:#?}");
}

#[test]
fn every_file_begins_with_a_description() {
    for (path, code) in sources() {
        assert!(code.starts_with("//! "), "{path}");
    }
}

#[test]
fn every_place_in_the_glossary_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let glossary = fs::read_to_string(root.join("docs/glossary.md")).unwrap();
    let places = glossary.lines().filter_map(|row| {
        let (_, place) = row.strip_suffix("` |")?.rsplit_once("| `")?;
        Some(place)
    });
    let places: Vec<_> = places.collect();
    assert!(places.len() > 30, "{places:?}");
    for place in places {
        assert!(root.join("src").join(place).exists(), "{place}");
    }
}

/// Path below `src` and code, without comments and tests, of every file.
pub fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = files_in(&root).into_iter();
    let files = files.filter(|path| !path.ends_with("tests.rs"));
    let sources = files.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = text
            .lines()
            .enumerate()
            .filter(|(at, line)| *at == 0 || !line.trim_start().starts_with("//"))
            .map(|(_, line)| line)
            .collect::<Vec<_>>()
            .join("\n");
        let path = path.strip_prefix(&root).unwrap();
        (path.to_string_lossy().into_owned(), code)
    });
    let sources: Vec<_> = sources.collect();
    assert!(sources.len() > 20);
    sources
}

fn files_in(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

/// Tests that the documentation names in its tables, alone in backticks.
#[test]
fn every_test_that_the_documentation_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = [
        files_in(&root.join("tests/it")),
        files_in(&root.join("src")),
    ]
    .concat();
    let tests: String = tests
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let pages = ["callers.md", "coherence.md", "changes.md", "features.md"]
        .map(|page| root.join("docs").join(page));
    let pages = pages.map(|page| fs::read_to_string(page).unwrap()).concat();
    let cells = pages.lines().filter_map(|row| {
        let (_, names) = row.strip_suffix("` |")?.rsplit_once("| `")?;
        Some(names)
    });
    let named: Vec<_> = cells.flat_map(|names| names.split("`, `")).collect();
    assert!(named.len() > 70, "{named:?}");
    // In running text, names of five words and more are those of tests.
    let manual = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let in_text = manual
        .split('`')
        .filter(|word| word.matches('_').count() >= 5 && !word.contains(' '));
    assert!(in_text.clone().count() > 7);
    for name in named.into_iter().chain(in_text) {
        assert!(tests.contains(&format!("fn {name}(")), "no test {name}");
    }
}
