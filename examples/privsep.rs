//! Privilege separation: the server stays root and opens files by policy, for an owner that gives up its rights.
//!
//! Run it as root, with `cargo run --example privsep`.

use forkserver::{Fault, Fd, Listener, Server};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const NOBODY: u32 = 65_534;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if !geteuid().is_root() {
        println!("this example needs root: there are no rights to give up");
        return Ok(());
    }
    let log = std::env::temp_dir().join(format!("privsep.{}.log", std::process::id()));
    File::create(&log)?.set_permissions(PermissionsExt::from_mode(0o600))?;
    let allowed = log.clone();
    let server = Server::new()
        .process_name("monitor")
        .listen(Listener::private().for_user(NOBODY, NOBODY))
        .handle("open", move |_, path: PathBuf| {
            if path != allowed {
                return Err(Fault::new(format!(
                    "the policy does not allow {}",
                    path.display()
                )));
            }
            Ok(Fd::from(File::options().append(true).open(path)?))
        })
        .handle("remove", {
            let log = log.clone();
            move |_, (): ()| Ok(std::fs::remove_file(&log)?)
        })
        .start()?;

    drop_rights()?;
    println!("owner runs as uid {} now", geteuid());
    let direct = File::options().append(true).open(&log).unwrap_err();
    println!("opening the log by itself: {direct}");

    let mut monitor = server.connect()?; // works whatever the owner has become
    let fd: Fd = monitor.call("open", &log)?;
    writeln!(
        File::from(fd),
        "written without any right to open this file"
    )?;
    println!("opening the log through the server: ok");
    let refused = monitor.call::<_, Fd>("open", "/etc/shadow").unwrap_err();
    println!("opening /etc/shadow through the server: {refused}");

    monitor.call::<_, ()>("remove", &())?;
    println!("server stopped: {}", server.stop()?);
    Ok(())
}

fn drop_rights() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[group])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}
