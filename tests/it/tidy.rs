//! The house as it is drawn in ARCHITECTURE.md.

use std::path::{Path, PathBuf};

crate::tests![
    every_floor_uses_floors_below_it_only,
    the_core_does_no_input_or_output,
    unsafe_code_is_in_sys,
    some_crates_are_known_to_one_module,
    files_and_functions_are_short,
    the_benchmarks_are_as_readable,
    modules_say_what_they_are,
    the_changelog_has_the_version,
    tests_that_the_catalogues_name_are_there,
];

/// Modules by floor, lowest first; modules of one floor may use each other.
const FLOORS: [&[&str]; 6] = [
    &[
        "protocol",
        "limits",
        "password",
        "error",
        "exit",
        "fault",
        "fd",
        "descriptor",
        "bytes",
        "worker",
    ],
    &["sys"],
    &[
        "connection",
        "channel",
        "listener",
        "control",
        "gate",
        "context",
        "address",
        "arrival",
        "panics",
        "event",
        "passenger",
        "session",
        "scoreboard",
        "wait",
    ],
    &["service"],
    &["engine", "child", "prefork"],
    &["server", "handle", "client", "entry", "spawn"],
];

/// What the front door re-exports, as far as modules say `crate::Name`.
const NAMES: [(&str, &str); 16] = [
    ("Address", "address"),
    ("Bytes", "bytes"),
    ("CallError", "error"),
    ("Channel", "channel"),
    ("Client", "client"),
    ("ConnectError", "error"),
    ("Context", "context"),
    ("Control", "context"),
    ("Fault", "fault"),
    ("Fd", "fd"),
    ("Password", "password"),
    ("ServerHandle", "handle"),
    ("StartError", "error"),
    ("StopReason", "error"),
    ("StopToken", "channel"),
    ("Worker", "worker"),
];

struct Source {
    path: PathBuf,
    /// The module on the first level.
    module: String,
    /// Without comments and tests.
    code: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = sources_in("src");
    assert!(found.len() > 30);
    found.retain(|source| !source.path.ends_with("tests.rs"));
    found
}

fn sources_in(directory: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_owned();
                let first = path.iter().nth(1).unwrap().to_str().unwrap();
                let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
                let code = lines
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .collect::<Vec<_>>()
                    .join("\n");
                found.push(Source {
                    module: first.trim_end_matches(".rs").into(),
                    path,
                    code,
                    text,
                });
            }
        }
    }
    found
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The words that follow `crate::` in a text, also those in braces.
fn used(code: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => &list[..list.find('}').unwrap()],
            None => rest,
        };
        let count = if rest.starts_with('{') { usize::MAX } else { 1 };
        let parts = list.split(',').take(count);
        let word = |part: &str| {
            part.trim()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        words.extend(parts.map(word));
    }
    words
}

fn every_floor_uses_floors_below_it_only() {
    let mut seen = 0;
    for source in sources() {
        if source.module == "lib" {
            continue;
        }
        let own =
            floor(&source.module).unwrap_or_else(|| panic!("{:?} is on no floor", source.path));
        for word in used(&source.code) {
            let module = NAMES
                .iter()
                .find(|(name, _)| *name == word)
                .map_or(word.as_str(), |(_, module)| module);
            if let Some(theirs) = floor(module) {
                seen += 1;
                assert!(
                    theirs <= own,
                    "{:?} (floor {own}) uses {word} (floor {theirs})",
                    source.path
                );
                let separate =
                    ["protocol", "sys"].contains(&source.module.as_str()) && module == "sys";
                assert!(
                    !separate || source.module == "sys",
                    "{:?} uses {word}",
                    source.path
                );
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

fn forbid(source: &Source, words: &[&str]) {
    for word in words {
        let found = source.code.lines().find(|line| line.contains(word));
        assert!(
            found.is_none(),
            "{:?} contains {word}: {}",
            source.path,
            found.unwrap_or_default()
        );
    }
}

fn the_core_does_no_input_or_output() {
    let core: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.module == "protocol")
        .collect();
    assert!(core.len() > 10);
    for source in &core {
        let forbidden = [
            "nix::",
            "libc",
            "std::net",
            "os::unix::net",
            "std::thread",
            "std::fs",
            "::now()",
            "crate::sys",
            "SystemTime",
        ];
        forbid(source, &forbidden);
    }
    for source in sources().iter().filter(|source| source.module == "sys") {
        let code = source
            .code
            .replace("pub(crate)", "")
            .replace("crate::sys", "");
        assert!(
            !code.contains("crate::"),
            "{:?} knows the rest of the crate",
            source.path
        );
    }
}

fn unsafe_code_is_in_sys() {
    for source in sources() {
        if source.module != "sys" {
            forbid(&source, &["unsafe {", "unsafe impl"]);
            let declared = source.code.matches("unsafe fn").count();
            assert_eq!(
                declared,
                usize::from(source.path.ends_with("server/mod.rs")),
                "{:?}",
                source.path
            );
        } else {
            let blocks = source.code.matches("unsafe {").count();
            let reasons = source.text.matches("// SAFETY:").count();
            assert!(
                reasons >= blocks,
                "{:?}: {blocks} blocks, {reasons} reasons",
                source.path
            );
        }
    }
}

/// Whether `name` stands in `code` as a word of its own.
fn mentions(code: &str, name: &str) -> bool {
    let is_word = |place: usize| {
        !code[..place].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
    };
    code.match_indices(name).any(|(place, _)| is_word(place))
}

fn some_crates_are_known_to_one_module() {
    let known = [
        ("bincode::", "src/protocol/codec/"),
        ("rand::", "src/password.rs"),
        ("subtle::", "src/password.rs"),
        ("signal_hook::", "src/sys/signal.rs"),
        ("strsim::", "src/service.rs"),
        ("nix::", "src/sys/"),
        ("tracing::", "src/server/traced.rs"),
    ];
    for source in sources().iter().filter(|source| source.module != "lib") {
        for (name, place) in known {
            let here = source.path.to_str().unwrap().starts_with(place);
            assert!(
                here || !mentions(&source.code, name),
                "{:?} knows {name}",
                source.path
            );
        }
        let may_catch =
            ["src/panics.rs", "src/sys/process.rs"].contains(&source.path.to_str().unwrap());
        assert!(
            may_catch || !source.code.contains("catch_unwind"),
            "{:?}",
            source.path
        );
    }
}

fn files_and_functions_are_short() {
    are_short(&sources());
}

fn the_benchmarks_are_as_readable() {
    let sources = sources_in("benches/src");
    assert!(sources.len() > 20);
    are_short(&sources);
    for source in sources {
        assert!(source.text.starts_with("//! "), "{:?}", source.path);
    }
}

fn are_short(sources: &[Source]) {
    for source in sources {
        let lines = source.text.lines().count();
        assert!(lines <= 450, "{:?} has {lines} lines", source.path);
        let mut begin = None;
        for (number, line) in source.text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let text = line.trim_start();
            let declares =
                text.starts_with("fn ") || text.starts_with("pub") && text.contains(" fn ");
            if declares && !text.ends_with(';') {
                begin = Some((number, indent));
            }
            if let Some((first, outer)) = begin {
                if text == "}" && indent == outer {
                    assert!(
                        number - first <= 60,
                        "{:?}:{} is {} lines long",
                        source.path,
                        first + 1,
                        number - first
                    );
                    begin = None;
                }
            }
        }
    }
}

fn modules_say_what_they_are() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{:?}", source.path);
        if source.module != "lib" {
            assert!(
                source.text.contains("\n//!\n//! Invariant: "),
                "{:?} states no invariant",
                source.path
            );
        }
        let name = source.path.file_stem().unwrap().to_str().unwrap();
        assert!(
            ![
                "util", "utils", "common", "helpers", "prelude", "types", "traits"
            ]
            .contains(&name)
        );
    }
}

fn the_changelog_has_the_version() {
    let changelog = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains(&format!("## [{}]", env!("CARGO_PKG_VERSION"))));
}

/// The lists at the heads of `conformance_*.rs` say where what other systems assert is tested. They must not outlive the tests.
fn tests_that_the_catalogues_name_are_there() {
    let directory = root().join("tests/it");
    let text_of = |module: &str| {
        std::fs::read_to_string(directory.join(format!("{module}.rs"))).unwrap_or_default()
    };
    let modules = std::fs::read_dir(&directory).unwrap();
    let modules = modules.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut count = 0;
    for module in modules.filter_map(|name| name.strip_suffix(".rs").map(String::from)) {
        if !module.starts_with("conformance_") {
            continue;
        }
        let text = text_of(&module);
        let head: String = text
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .collect();
        // What stands between two signs of this kind is every other part.
        for name in head.split('`').skip(1).step_by(2) {
            let (place, test) = match name.split_once("::") {
                Some((place, test)) if !name.contains(char::is_uppercase) => (place, test),
                None if text.contains(&format!("[`{name}`]")) => (module.as_str(), name),
                _ => continue,
            };
            let is_there = text_of(place).contains(&format!("fn {test}()"));
            let is_a_module = test == "*" && !text_of(place).is_empty();
            // Of the crate's own unit tests, a module is named.
            let is_unit = root().join("src").join(place).exists();
            assert!(is_there || is_a_module || is_unit, "{module}: {name}");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}
