//! A listener's password can be replaced while its server runs.

use crate::processes::readable;
use forkserver::{
    Address, CallError, Channel, Client, ControlError, Listener, Password, Server, ServerHandle,
};
use std::time::Duration;

crate::tests![
    later_clients_need_the_new_password_and_sessions_go_on,
    an_owners_connections_need_no_password_of_the_day,
    other_listeners_keep_theirs,
    a_handler_rotates_and_knows_the_address,
    passwords_of_both_extreme_lengths_can_be_rotated_to,
    unknown_listeners_are_errors,
    what_an_initialize_hook_rotates_holds_from_the_start,
];

fn two() -> Server {
    crate::server()
        .listen(Listener::private().name("a"))
        .listen(Listener::private().name("b"))
        .handle("echo", |_, text: String| Ok(text))
        .handle("rotate", |ctx, (name, bytes): (String, Vec<u8>)| {
            let known = ctx.control().rotate_password(&name, Password::new(bytes)?);
            let address = ctx.control().address_of(&name);
            Ok((
                known,
                address.map(|address| address.password().as_bytes().to_vec()),
            ))
        })
        .handle_stream("upper", |_, (): (), mut channel: Channel| {
            while let Some(text) = channel.recv::<String>()? {
                channel.send(&text.to_uppercase())?;
            }
            Ok(())
        })
}

fn other(number: u8) -> Password {
    Password::new([number; 32]).unwrap()
}

fn echoes(client: &mut Client) {
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn opens(address: &Address) {
    echoes(&mut Client::connect(address).unwrap());
}

fn is_denied(address: &Address) {
    let mut client = Client::connect(address).unwrap();
    let err = client.call::<_, String>("echo", "x").unwrap_err();
    assert!(matches!(err, CallError::Denied(_)), "{err}");
}

fn address(server: &ServerHandle, listener: &str) -> Address {
    server.address_of(listener).unwrap().clone()
}

fn later_clients_need_the_new_password_and_sessions_go_on() {
    let mut server = two().start().unwrap();
    let first = address(&server, "a");
    let mut client = Client::connect(&first).unwrap();
    echoes(&mut client);
    let mut channel = Client::connect(&first).unwrap().open("upper", &()).unwrap();
    let mut former = vec![first];
    for number in 1..=3 {
        server.rotate_password("a", other(number)).unwrap();
        assert_eq!(server.address().password().as_bytes(), [number; 32]);
        let now = address(&server, "a");
        opens(&now);
        former.iter().for_each(is_denied);
        former.push(now);
        echoes(&mut client);
        channel.send("x").unwrap();
        assert_eq!(channel.recv::<String>().unwrap().unwrap(), "X");
    }
    // Back to an earlier one.
    server.rotate_password("a", other(1)).unwrap();
    opens(&former[1]);
    is_denied(&former[3]);
}

fn an_owners_connections_need_no_password_of_the_day() {
    let mut server = two().start().unwrap();
    let mut before = server.connect().unwrap();
    server.rotate_password("a", other(1)).unwrap();
    echoes(&mut before);
    echoes(&mut server.connect().unwrap());
    let args = ("a", vec![2_u8; 32]);
    let _: (bool, Option<Vec<u8>>) = before.call("rotate", &args).unwrap();
    echoes(&mut server.connect().unwrap());
}

fn other_listeners_keep_theirs() {
    let mut server = two().start().unwrap();
    let (a, b) = (address(&server, "a"), address(&server, "b"));
    server.rotate_password("b", other(1)).unwrap();
    opens(&a);
    is_denied(&b);
    opens(server.address_of("b").unwrap());
    // A stop, and a start, change nothing.
    server.stop_listener("b").unwrap();
    server.start_listener("b").unwrap();
    is_denied(&b);
    opens(server.address_of("b").unwrap());
}

fn a_handler_rotates_and_knows_the_address() {
    let server = two().start().unwrap();
    let before = address(&server, "b");
    let mut client = server.connect().unwrap();
    let mut rotate = |name: &str| {
        let args = (name, vec![7_u8; 32]);
        client
            .call::<_, (bool, Option<Vec<u8>>)>("rotate", &args)
            .unwrap()
    };
    assert_eq!(rotate("b"), (true, Some(vec![7; 32])));
    assert_eq!(rotate("c"), (false, None));
    is_denied(&before);
    opens(&crate::auth::with_password_at(&before, &other(7)));
    opens(server.address());
}

fn passwords_of_both_extreme_lengths_can_be_rotated_to() {
    let mut server = two().start().unwrap();
    for length in [Password::MIN, Password::MAX] {
        let password = Password::new(vec![7; length]).unwrap();
        server.rotate_password("a", password).unwrap();
        opens(server.address());
    }
}

fn unknown_listeners_are_errors() {
    let mut server = two().start().unwrap();
    let err = server.rotate_password("c", other(1)).unwrap_err();
    assert!(
        matches!(&err, ControlError::NoSuchListener(name) if name == "c"),
        "{err}"
    );
    opens(server.address());
}

fn what_an_initialize_hook_rotates_holds_from_the_start() {
    let definition = two().initialize(|control| {
        assert!(control.rotate_password("a", other(9)));
        Ok(())
    });
    let server = definition.start().unwrap();
    is_denied(server.address());
    opens(&crate::auth::with_password_at(server.address(), &other(9)));
    let mut client = server.connect().unwrap();
    echoes(&mut client);
    assert!(!readable(&server, Duration::ZERO));
}
