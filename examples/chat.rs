//! One thread, many clients: a chat in lines of text, and a second way in through which the owner calls.
//!
//! Run it with `cargo run --example chat`; with a path behind it, it listens there until Enter is pressed, for
//! `socat - UNIX-CONNECT:PATH`.

use forkserver::{
    Client, Engine, EventHandler, Fault, Item, Lines, Listener, Server, Session, SessionHandle,
};
use std::any::Any;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Everybody in the room; made in the server, before anybody comes.
type Room = Mutex<Vec<SessionHandle>>;

/// One client's part in the server.
struct Member(usize);

impl EventHandler for Member {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        let handle = session.handle();
        let mut room = session.context().state::<Room>().lock().unwrap();
        // Those who have gone take no events.
        room.retain(|member| {
            member
                .post(format!("* {} joins", handle.session_id()))
                .is_ok()
        });
        room.push(handle);
        Ok(())
    }

    fn received(&mut self, session: &mut Session, line: Item) -> Result<(), Fault> {
        let said = String::from_utf8_lossy(line.as_slice());
        let said = format!("{}: {said}", self.0);
        let room = session.context().state::<Room>().lock().unwrap();
        for member in room.iter() {
            let _ = member.post(said.clone());
        }
        Ok(())
    }

    fn posted(&mut self, session: &mut Session, event: Box<dyn Any + Send>) -> Result<(), Fault> {
        match event.downcast::<String>() {
            Ok(text) => Ok(session.write(*text)?),
            Err(_) => Err(Fault::new("nobody posts anything else")),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args().nth(1).map(PathBuf::from);
    let temporary = std::env::temp_dir().join(format!("chat.{}", std::process::id()));
    let path = given.clone().unwrap_or(temporary);
    let chat = Listener::at(&path).name("chat");
    let server = Server::new()
        .engine(Engine::Evented)
        .initialize(|_| Ok(Room::default()))
        .listen(chat.handle_events(Lines::default, |_| Ok(Member(0))))
        .listen(Listener::private().name("owner"))
        .handle("announce", |ctx, text: String| {
            let room = ctx.state::<Room>().lock().unwrap();
            let told = room
                .iter()
                .filter(|member| member.post(format!("! {text}")).is_ok());
            Ok(told.count())
        })
        .start()?;
    let mut owner = Client::connect(server.address_of("owner").ok_or("it has that name")?)?;
    match given {
        None => talk(&path, &mut owner)?,
        Some(path) => {
            println!("come to {}; Enter ends it", path.display());
            std::io::stdin().read_line(&mut String::new())?;
        }
    }
    server.stop_listener("chat")?;
    println!("the chat is closed: {} is gone", !path.exists());
    server.stop()?;
    Ok(())
}

/// Two clients talk, and the owner has the last word.
fn talk(path: &Path, owner: &mut Client) -> Result<(), Box<dyn std::error::Error>> {
    let mut joe = UnixStream::connect(path)?;
    joe.write_all(b"is anybody here?\n")?;
    let mut heard = BufReader::new(joe.try_clone()?).lines();
    let mut hear = || heard.next().unwrap_or(Ok(String::new()));
    println!("joe hears {:?}", hear()?);
    let mut jack = UnixStream::connect(path)?;
    println!("joe hears {:?}", hear()?);
    jack.write_all(b"I am\n")?;
    println!("joe hears {:?}", hear()?);
    let told: usize = owner.call("announce", "supper is ready")?;
    println!("the owner tells {told}");
    println!("joe hears {:?}", hear()?);
    Ok(())
}
