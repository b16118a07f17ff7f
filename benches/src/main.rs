//! forkserver, the kernel's own limit and the peers, measured side by side in interleaved rounds: `scripts/bench`.
//! benches/README.md says what is measured and why so.

mod bare;
mod chart;
mod contestant;
mod costs;
mod crowd;
mod figure;
mod measure;
mod options;
mod ours;
#[cfg(feature = "peers")]
mod peers;
mod placement;
mod process;
mod regression;
mod runner;
mod statistics;
mod table;
mod task;
mod workload;

use contestant::Contestant;
use figure::Figure;
use measure::Field;
use options::{Options, USAGE};
use placement::Cores;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    // In a server that is this program executed once more, these do not return.
    forkserver::init(ours::ENTRIES);
    #[cfg(feature = "peers")]
    peers::init();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match Options::of(arguments.into_iter()).and_then(|options| run(&options)) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, String> {
    let contestants = options.contestants(contestant::all())?;
    if options.list {
        list(&contestants);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(stored) = &options.draw {
        let (about, figures) = figure::from_text(&read(stored)?)?;
        print(&figures);
        return write_files(options, &about, &figures);
    }
    let stored = match &options.against {
        Some(path) => Some(figure::from_text(&read(path)?)?.1),
        None => None,
    };
    let about = about();
    println!("{about}");
    let directory = Directory::new().map_err(|err| format!("a temporary directory: {err}"))?;
    let field = Field {
        contestants: &contestants,
        cores: Cores::given(),
        directory: &directory.0,
        effort: options.effort(),
    };
    if options.costs {
        print!("{}", costs::table(&field));
        return Ok(ExitCode::SUCCESS);
    }
    let figures = measure(&field, options);
    print!(
        "{}{}",
        table::of_targets(&figures),
        table::of_peers(&figures)
    );
    write_files(options, &about, &figures)?;
    Ok(match stored {
        Some(stored) => compare(&stored, &figures),
        None => ExitCode::SUCCESS,
    })
}

fn list(contestants: &[Box<dyn Contestant>]) {
    for workload in workload::ALL {
        println!("{:<5} {}", workload.id, workload.title);
    }
    for contestant in contestants {
        println!("{:<10} {}", contestant.kind().name(), contestant.name());
    }
}

fn measure(field: &Field, options: &Options) -> Vec<Figure> {
    let mut all = Vec::new();
    for workload in options.workloads() {
        let mut figures = Vec::new();
        for placement in options.placements(workload) {
            if field.cores.have(placement) {
                figures.extend(field.measure(workload, placement));
            }
        }
        print!("{}", table::of_workload(workload, &figures));
        all.extend(figures);
    }
    all
}

fn print(figures: &[Figure]) {
    for workload in workload::ALL {
        let own = figures.iter().filter(|one| one.workload == workload.id);
        print!(
            "{}",
            table::of_workload(workload, &own.cloned().collect::<Vec<_>>())
        );
    }
    print!("{}{}", table::of_targets(figures), table::of_peers(figures));
}

fn write_files(options: &Options, about: &str, figures: &[Figure]) -> Result<ExitCode, String> {
    if let Some(path) = &options.tsv {
        write(path, &figure::to_text(about, figures))?;
    }
    if let Some(path) = &options.chart {
        write(path, &chart::of(about, figures))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(stored: &[Figure], figures: &[Figure]) -> ExitCode {
    let worse = regression::worse(stored, figures);
    let count = regression::compared(stored, figures);
    println!("\n{count} figures compared with the stored run\n{worse}");
    match worse.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The machine, as far as figures depend on it.
fn about() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split('.').take(2).collect::<Vec<_>>().join(".");
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_guest = processor
        .split_whitespace()
        .any(|flag| flag == "hypervisor");
    let kind = if is_guest { "vCPU guest" } else { "CPUs" };
    let (cores, arch) = (Cores::given().count(), std::env::consts::ARCH);
    format!("{cores} {kind}, {arch}, Linux {}", version.trim())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|err| format!("{}: {err}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|err| format!("{}: {err}", path.display()))
}

/// Where all sockets of a run are, everybody's; with it they go.
struct Directory(PathBuf);

/// A file system in memory, as the directory is in which a login has its sockets (`XDG_RUNTIME_DIR`). On a disk, to
/// remove a directory may take as long as all the rest of a server's life.
const IN_MEMORY: &str = "/dev/shm";

impl Directory {
    fn new() -> std::io::Result<Directory> {
        let name = format!("bench.{}", std::process::id());
        let in_memory = PathBuf::from(IN_MEMORY).join(&name);
        if std::fs::create_dir(&in_memory).is_ok() {
            return Ok(Directory(in_memory));
        }
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
