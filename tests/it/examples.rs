//! The examples run, and say what they promise.

use std::path::PathBuf;
use std::process::{Command, Output};

crate::tests![
    hello,
    pass_fd,
    privsep,
    signals,
    stream,
    chat,
    prefork,
    reload,
    spawn_server,
    tokio_owner,
    examples_are_short
];

/// Runs an example, which cargo has built beside this program.
fn run(name: &str, args: &[&str]) -> Output {
    let mut path: PathBuf = std::env::current_exe().expect("our own path");
    path.pop();
    path.set_file_name("examples");
    path.push(name);
    Command::new(path)
        .args(args)
        // Without places where this user may not look.
        .env("PATH", "/bin:/usr/bin")
        .output()
        .expect("cargo builds the examples with the tests")
}

fn text(output: Output) -> String {
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success(),
        "{}\n{text}\n{errors}",
        output.status
    );
    assert_eq!(errors, "");
    text
}

fn hello() {
    let said = text(run("hello", &["Averell", "Dalton"]));
    for line in [
        "server says: Hello Averell Dalton, how are you? (greeting number 1)",
        "the descriptor it opened and sent reads: greeter",
        "a fault comes back as an error: No such file or directory (os error 2)",
        "and so does a mistake: the server has no handler \"helo\", but \"hello\"",
        "server stopped: exit status 0",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn prefork() {
    let said = text(run("prefork", &[]));
    for line in [
        "has 4 workers",
        "a crash costs its caller: worker ",
        "died: ended by signal 6",
        "the same client goes on, and worker ",
        "there are four workers again",
        "died: ended by signal 6",
        "server stopped: exit status 0",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let asked = said.matches("is asked for \"fork\": true").count();
    assert_eq!(asked, 5, "four, and one once more: {said}");
}

fn reload() {
    let said = text(run("reload", &[]));
    for line in [
        "before: Hello Joe",
        "the client had several workers: true",
        "errors in its calls: 0; it made some: true",
        "after: Good evening Joe",
        "server stopped: exit status 0",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn chat() {
    let said = text(run("chat", &[]));
    for line in [
        "joe hears \"1: is anybody here?\"",
        "joe hears \"* 2 joins\"",
        "joe hears \"2: I am\"",
        "the owner tells 2",
        "joe hears \"! supper is ready\"",
        "the chat is closed: true is gone",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn pass_fd() {
    let said = text(run("pass_fd", &[]));
    for line in [
        "the server wrote into our pipe: 42 bytes of greetings",
        "we read from the server's file: secret of the server",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn privsep() {
    let said = text(run("privsep", &[]));
    if !nix::unistd::geteuid().is_root() {
        assert!(said.contains("needs root"), "{said}");
        return;
    }
    for line in [
        "owner runs as uid 65534 now",
        "opening the log by itself: Permission denied",
        "opening the log through the server: ok",
        "opening /etc/shadow through the server: the policy does not allow /etc/shadow",
        "server stopped: exit status 0",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn signals() {
    let said = text(run("signals", &[]));
    for line in ["reloaded 2 times", "the server ended: ended by signal 15"] {
        assert!(said.contains(line), "{said}");
    }
}

fn stream() {
    let said = text(run("stream", &[]));
    for line in [
        "the server saw: cold start",
        "the server saw: good night",
        "after the stream, a call: 3 lines",
        "its last words: the server is stopping",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn spawn_server() {
    let said = text(run("spawn_server", &[]));
    for line in [
        r#"sorted at the same time: ["apple\npear\n", "one\ntwo\n"]"#,
        "with a limit of 32 descriptors: exit status 7",
        "the sleeper: ended by signal 15",
        "cannot execute the program for no-such-program: No such file or directory (os error 2)",
        "the spawner ended with exit status 0, and 64 MiB stayed here",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn tokio_owner() {
    let said = text(run("tokio_owner", &[]));
    for line in [
        "the server is another process: true",
        "counted: 3 la",
        "counted: 0 la",
        "a process said: hello from afar",
        "server stopped: exit status 0",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

fn examples_are_short() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    for entry in std::fs::read_dir(root.join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 80, "{path:?} has {lines} lines");
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(
            TESTS.iter().any(|(test, _)| test.ends_with(&name)),
            "{name} is not run by a test"
        );
        assert!(
            readme.contains(&format!("`{name}`")),
            "{name} is not in the README"
        );
    }
}
