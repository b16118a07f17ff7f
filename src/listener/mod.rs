//! Where a server listens: a socket that nobody else can reach, at a path that nobody else can take.
//!
//! Invariant: whether a server is alive at a path is told by a lock that it holds, never by trying to connect; no
//! file is removed but a socket of ours whose server is dead. Everything is refused before anything is changed.

mod activated;
mod bound;
mod footprint;
mod lock;
mod refusal;
mod speaks;
mod wire;

pub(crate) use self::bound::Bound;
use self::footprint::FootprintKind;
pub(crate) use self::footprint::{Footprint, FootprintParts, Footprints};
use self::lock::Lock;
pub use self::wire::{AcceptedConn, Permit};
pub(crate) use self::wire::{Acceptor, Records, Wire};
use crate::StartError;
use crate::error::Context as _;
use crate::limits::Limits;
use crate::password::Password;
use crate::sys::file::{self, FileId, Info};
use crate::sys::{process, socket};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A name may be this long: behind `/proc/self/fd/1234567/` it still fits into a socket's address.
const MAX_NAME: usize = 80;
/// A private socket is called this, in a directory of its own.
const PRIVATE_NAME: &str = "socket";

/// Where a server listens, and who may connect.
///
/// ```
/// use forkserver::{Listener, Password, Server};
/// # fn main() -> forkserver::Result<()> {
/// let listener = Listener::at("/run/user/1000/greeter").name("main").password(Password::generate()?);
/// let server = Server::new().listen(listener);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Listener {
    place: Place,
    pub(crate) name: Arc<str>,
    password: Option<Password>,
    user: Option<(u32, u32)>,
    limits: Option<Arc<Limits>>,
    only: Option<Arc<HashSet<String>>>,
    wire: Wire,
}

#[derive(Clone, Debug)]
enum Place {
    Private,
    At(PathBuf),
    Inherited(Arc<OwnedFd>),
}

impl Default for Listener {
    fn default() -> Listener {
        Listener::private()
    }
}

impl Listener {
    /// A fresh directory of mode 0700, in the user's runtime directory (`$XDG_RUNTIME_DIR`, if it is what it
    /// should be) or else in the temporary one. This is the default.
    pub fn private() -> Listener {
        Listener::new(Place::Private)
    }

    /// A path of your choice; a relative one is taken from the directory in which the server is started. Beside
    /// the socket there is a file `<path>.lock` for as long as the server lives.
    ///
    /// A path longer than a socket's address may be (107 bytes) works, unless its last part has more than 80.
    pub fn at(path: impl Into<PathBuf>) -> Listener {
        Listener::new(Place::At(path.into()))
    }

    /// A bound Unix stream socket that you have made, or that was handed to this program. Its file stays when the
    /// server ends, and who may reach it is your business; clients need the password all the same, and must run
    /// as this user, as root, or as the one given to [`Listener::for_user`].
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Listener {
        Listener::new(Place::Inherited(Arc::new(fd.into())))
    }

    fn new(place: Place) -> Listener {
        Listener {
            place,
            name: "default".into(),
            password: None,
            user: None,
            limits: None,
            only: None,
            wire: Wire::default(),
        }
    }

    /// The name by which handlers know the listener. Default: `default`.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Listener {
        self.name = name.into();
        self
    }

    /// A password of your own; otherwise each start makes a new one.
    pub fn password(mut self, password: Password) -> Listener {
        self.password = Some(password);
        self
    }

    /// Gives directory and socket to a user, and lets it connect: for an owner that gives up rights which the
    /// server keeps. Needs the rights of root.
    pub fn for_user(mut self, uid: u32, gid: u32) -> Listener {
        self.user = Some((uid, gid));
        self
    }

    /// How much clients that come this way may take, instead of the [server's limits](crate::Server::limits). Those on
    /// threads, on streams and on clients without a password are the server's all the same; so is its
    /// `max_connections`, beside this one.
    pub fn limits(mut self, limits: Limits) -> Listener {
        self.limits = Some(Arc::new(limits));
        self
    }

    /// The only handlers that clients can call who come this way; for them, the others do not exist. A name without a
    /// handler is an error at the start.
    pub fn only<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Listener {
        self.only = Some(Arc::new(names.into_iter().map(Into::into).collect()));
        self
    }

    /// Those given to [`Listener::limits`].
    pub(crate) fn own_limits(&self) -> Option<&Arc<Limits>> {
        self.limits.as_ref()
    }

    /// The names given to [`Listener::only`].
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.only.iter().flat_map(|names| names.iter())
    }

    /// As [`Listener::for_user`], unless that was said before: a server that becomes another user must be able to
    /// remove its socket.
    pub(crate) fn or_for_user(mut self, user: Option<(u32, u32)>) -> Listener {
        self.user = self.user.or(user);
        self
    }

    /// Binds the socket, without listening yet. What a server has to keep is in the first result; the second is
    /// for the owner, to clean up after a server that was killed.
    fn bind(&self) -> Result<(Bound, Option<Footprint>), StartError> {
        let password = match &self.password {
            Some(password) => password.clone(),
            None => Password::generate().start("make a password")?,
        };
        let placed = match &self.place {
            Place::Private => self.bind_private()?,
            Place::At(path) => self.bind_at(path)?,
            Place::Inherited(fd) => self.adopt(fd)?,
        };
        let Placed { socket, path, ours } = placed;
        let (lock, footprint) = ours.unzip();
        let name = Arc::clone(&self.name);
        let uid = process::effective_user();
        let admitted = [Some(0), Some(uid), self.user.map(|(uid, _)| uid)]
            .into_iter()
            .flatten()
            .collect();
        let mut bound = Bound {
            socket,
            path,
            name,
            password: Arc::new(password),
            admitted,
            limits: self.limits.clone(),
            only: self.only.clone(),
            wire: self.wire.clone(),
            lock,
            footprint,
            refuses_rights: false,
            is_lent: false,
        };
        match bound.finish() {
            Ok(owners_copy) => Ok((bound, owners_copy)),
            Err(err) => {
                bound.remove_file();
                Err(err)
            }
        }
    }

    fn bind_private(&self) -> Result<Placed, StartError> {
        let parent = runtime_directory(self.user)?;
        let path = file::make_private_directory(&parent, "forkserver.")
            .start("make a private directory")?;
        let made = || {
            let directory = file::open_directory(&path).start("open the private directory")?;
            let lock = file::open_directory(&path).start("open the private directory")?;
            // A lock on the directory also keeps cleaners of temporary files away from it.
            if !file::try_lock(&lock).start("lock the private directory")? {
                return Err(in_use(&path, "somebody has locked the new directory"));
            }
            let (socket, id) = self.bind_in(&directory, &path, OsStr::new(PRIVATE_NAME))?;
            if let Some((uid, gid)) = self.user {
                file::give_directory(&directory, uid, gid)
                    .start("give the directory to the user")?;
            }
            let name = PathBuf::from(PRIVATE_NAME);
            let footprint = Footprint {
                directory,
                name,
                id,
                kind: FootprintKind::Private(path.clone()),
            };
            Ok(Placed {
                socket,
                path: path.join(PRIVATE_NAME),
                ours: Some((lock, footprint)),
            })
        };
        made().inspect_err(|_| {
            let _ = std::fs::remove_file(path.join(PRIVATE_NAME));
            let _ = file::remove_directory(&path);
        })
    }

    fn bind_at(&self, path: &Path) -> Result<Placed, StartError> {
        let path = std::path::absolute(path).start("find the current directory")?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(in_use(&path, "it is the root directory"));
        };
        if name.len() > MAX_NAME && path.as_os_str().len() > socket::MAX_PATH {
            return Err(StartError::PathTooLong {
                path: path.clone(),
                limit: MAX_NAME,
            });
        }
        let directory = file::open_directory(parent).start("open the socket's directory")?;
        require_safe(parent)?;
        let lock = Lock::take(&directory, name, &path)?;
        lock.remove_dead_socket(&directory, name, &path)?;
        let (socket, id) = match self.bind_in(&directory, parent, name) {
            Ok(bound) => bound,
            Err(err) => {
                lock.undo(&directory);
                return Err(err);
            }
        };
        if let Err(err) = lock.record(id).start("write the lock file") {
            let _ = file::remove_if(&directory, Path::new(name), id);
            lock.undo(&directory);
            return Err(err);
        }
        let Lock {
            file,
            name: lock_name,
            ..
        } = lock;
        let footprint = Footprint {
            directory,
            name: name.into(),
            id,
            kind: FootprintKind::Locked(lock_name),
        };
        Ok(Placed {
            socket,
            path,
            ours: Some((file, footprint)),
        })
    }

    /// Binds `name` in `directory`, which is `parent`; the file has exactly mode 0700 then, and the right owner.
    fn bind_in(
        &self,
        directory: &OwnedFd,
        parent: &Path,
        name: &OsStr,
    ) -> Result<(OwnedFd, FileId), StartError> {
        let socket = socket::listener().start("make a socket")?;
        let whole = parent.join(name);
        let path = short_path(directory, &whole);
        match socket::bind(&socket, &path) {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::AddrInUse => {
                return Err(in_use(&whole, "a file is there"));
            }
            Err(source) => {
                return Err(StartError::Io {
                    action: "bind the socket",
                    source,
                });
            }
        }
        let name = Path::new(name);
        let finish = || -> std::io::Result<FileId> {
            let id = file::require_mode(directory, name, 0o700)?;
            if let Some((uid, gid)) = self.user {
                file::give_to(directory, name, uid, gid)?;
            }
            Ok(id)
        };
        let id = finish()
            .start("set up the socket's file")
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&whole);
            })?;
        Ok((socket, id))
    }

    fn adopt(&self, fd: &OwnedFd) -> Result<Placed, StartError> {
        let copy = fd.try_clone().start("copy the listener's descriptor")?;
        let socket = std::os::unix::net::UnixListener::from(copy);
        socket.set_nonblocking(true).start("set up the socket")?;
        let address = socket
            .local_addr()
            .start("ask for the listener's address")?;
        let Some(path) = address.as_pathname() else {
            let source =
                std::io::Error::new(ErrorKind::InvalidInput, "it is no socket bound to a path");
            return Err(StartError::Io {
                action: "use the listener's descriptor",
                source,
            });
        };
        let path = std::path::absolute(path).start("find the current directory")?;
        Ok(Placed {
            socket: socket.into(),
            path,
            ours: None,
        })
    }
}

/// Binds all of a server's listeners, or none. See [`Listener::bind`].
pub(crate) fn bind_all(listeners: &[Listener]) -> Result<(Vec<Bound>, Footprints), StartError> {
    let (mut all, mut footprints) = (Vec::new(), Footprints::default());
    for listener in listeners {
        let bound = listener.bind().inspect_err(|_| {
            all.iter().for_each(Bound::remove_file);
        });
        let (bound, footprint) = bound?;
        all.push(bound);
        footprints.add(footprint);
    }
    Ok((all, footprints))
}

/// A socket in its place, with lock and footprint if its file is ours.
struct Placed {
    socket: OwnedFd,
    path: PathBuf,
    ours: Option<(OwnedFd, Footprint)>,
}

/// A path to `path` in `directory` that fits into a socket's address.
pub(crate) fn short_path(directory: &impl AsFd, path: &Path) -> PathBuf {
    if path.as_os_str().as_bytes().len() <= socket::MAX_PATH {
        return path.into();
    }
    file::descriptor_path(directory).join(path.file_name().unwrap_or_default())
}

/// Where private directories are made: where `user`, if it is another than this process's, can remove its own.
fn runtime_directory(user: Option<(u32, u32)>) -> Result<PathBuf, StartError> {
    let uid = process::effective_user();
    let uid = user.map_or(uid, |(uid, _)| uid);
    if let Some(path) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        // It may be another user's, after sudo.
        let info = file::open_directory(&path).and_then(|directory| file::look_at(&directory));
        if path.is_absolute() && info.is_ok_and(|info| info.uid == uid && info.mode & 0o077 == 0) {
            return Ok(path);
        }
    }
    let path = std::path::absolute(std::env::temp_dir()).start("find the current directory")?;
    require_safe(&path)?;
    Ok(path)
}

/// Nobody but this user and root may be able to replace a socket in this directory, or a directory on the way to it.
fn require_safe(path: &Path) -> Result<(), StartError> {
    for directory in path.ancestors() {
        let info = file::look_through(directory).start("look at the socket's directory")?;
        require_safe_directory(directory, &info)?;
    }
    Ok(())
}

fn require_safe_directory(path: &Path, info: &Info) -> Result<(), StartError> {
    const STICKY: u32 = 0o1000;
    let uid = process::effective_user();
    let reason = if info.uid != uid && info.uid != 0 {
        "it belongs to another user"
    } else if info.mode & 0o022 != 0 && info.mode & STICKY == 0 {
        "others can replace files in it"
    } else {
        return Ok(());
    };
    Err(StartError::UnsafeDirectory {
        path: path.into(),
        reason,
    })
}

fn in_use(path: &Path, reason: &'static str) -> StartError {
    StartError::AddressInUse {
        path: path.into(),
        reason,
    }
}
