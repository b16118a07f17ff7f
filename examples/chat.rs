//! One thread, many clients: a chat in lines of text, in which the owner has a say.
//!
//! Run it with `cargo run --example chat`.

use forkserver::{
    Engine, EventHandler, Fault, Item, Lines, Listener, Server, Session, SessionHandle,
};
use std::any::Any;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// Everybody in the room; made in the server, before anybody comes.
type Room = Mutex<Vec<SessionHandle>>;

/// One client's part in the server.
struct Member(usize);

impl EventHandler for Member {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        let handle = session.handle();
        let mut room = session.context().state::<Room>().lock().unwrap();
        self.0 = room.len() + 1;
        for member in room.iter() {
            // One that is slow to read, or gone, misses it.
            let _ = member.post(format!("* {} joins", self.0));
        }
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
        let text = event.downcast::<String>();
        text.map_or(Ok(()), |text| Ok(session.write(*text)?))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("chat.{}", std::process::id()));
    let chat = Listener::at(&path).name("chat");
    let server = Server::new()
        .engine(Engine::Evented)
        .initialize(|_| Ok(Room::default()))
        .listen(chat.handle_events(Lines::default, |_| Ok(Member(0))))
        .handle("announce", |ctx, text: String| {
            let room = ctx.state::<Room>().lock().unwrap();
            let told = room.iter().map(|member| member.post(text.clone()));
            Ok(told.filter(Result::is_ok).count())
        })
        .start()?;

    let mut joe = UnixStream::connect(&path)?;
    joe.write_all(b"is anybody here?\n")?;
    let mut heard = BufReader::new(joe.try_clone()?).lines();
    let mut hear = || heard.next().unwrap_or(Ok(String::new()));
    println!("joe hears {:?}", hear()?);
    let mut jack = UnixStream::connect(&path)?;
    println!("joe hears {:?}", hear()?);
    jack.write_all(b"I am\n")?;
    println!("joe hears {:?}", hear()?);
    let told: usize = server.connect()?.call("announce", "! supper is ready")?;
    println!("the owner tells {told}");
    println!("joe hears {:?}", hear()?);

    server.stop_listener("chat")?;
    println!("the chat is closed: {} is gone", !path.exists());
    server.stop()?;
    Ok(())
}
