//! What a power cut may leave of a folder: the states between a program's system calls, as strace(1) saw them.
//!
//! The model is the worst that POSIX allows. A file's bytes count from the end of an fsync of it that began after they were
//! written; a name, or its removal, from the end of an fsync of its folder that began after it was made. What is not
//! certain may be there or not: the states of one moment are those with all or none of the uncertain names, and with
//! all or none of the uncertain removals. A file whose bytes are uncertain is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The system calls that a folder's state depends on.
const CALLS: &str = "open,openat,close,fcntl,dup,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,copy_file_range,\
                     fsync,fdatasync,sync,syncfs,link,linkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat";

/// What happened to a folder, in the order in which the calls ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes or length of an open file changed.
    Written(usize),
    /// All that had happened to the file by event `began` is durable.
    Synced {
        /// The open file.
        file: usize,
        /// How many events there were when the call began.
        began: usize,
    },
    /// A file got a name.
    Linked {
        /// The open file.
        file: usize,
        /// Its name.
        path: PathBuf,
    },
    /// A name went away.
    Unlinked(PathBuf),
    /// A folder was made.
    Made(PathBuf),
    /// The names in a folder are durable as they were at event `began`.
    FolderSynced {
        /// The folder.
        path: PathBuf,
        /// How many events there were when the call began.
        began: usize,
    },
}

/// Names in the folder, relative to it, and whether the file's bytes are all there.
pub type State = BTreeMap<PathBuf, bool>;

/// Runs a command under strace and gives what it did below `root`, apart from the folders `without`.
///
/// # Panics
/// When the command fails, or does what this model does not know.
pub fn trace(command: &Command, root: &Path, without: &[&str]) -> Vec<Event> {
    let log = root.with_extension("strace");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"]).arg(&log).arg(command.get_program());
    traced.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    crate::cli::run(&mut traced);
    events(&std::fs::read_to_string(&log).expect("strace wrote its log"), root, without)
}

/// What a log of strace says.
///
/// # Panics
/// When it is none.
pub fn events(log: &str, root: &Path, without: &[&str]) -> Vec<Event> {
    let mut reader =
        Reader { root, without, files: BTreeMap::new(), folders: BTreeMap::new(), next: 0, events: Vec::new() };
    let mut unfinished: BTreeMap<&str, (String, usize)> = BTreeMap::new();
    for line in log.lines() {
        let (process, call) = line.split_once(' ').expect("strace -f names the process");
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            if begun.starts_with("close(") {
                // Another thread may be given the number before this one tells that it is back.
                reader.call(&format!("{begun}) = 0"), reader.events.len());
                unfinished.insert(process, (String::new(), 0));
                continue;
            }
            unfinished.insert(process, (begun.to_owned(), reader.events.len()));
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let (begun, began) = unfinished.remove(process).expect("a call that ends has begun");
            let (_, rest) = rest.split_once("resumed>").expect("strace says resumed");
            reader.call(&format!("{begun}{rest}"), began);
        } else {
            reader.call(call, reader.events.len());
        }
    }
    reader.events
}

struct Reader<'a> {
    root: &'a Path,
    without: &'a [&'a str],
    /// Open files and folders by descriptor. The threads of one process share them.
    files: BTreeMap<u32, usize>,
    folders: BTreeMap<u32, PathBuf>,
    next: usize,
    events: Vec<Event>,
}

impl Reader<'_> {
    fn call(&mut self, call: &str, began: usize) {
        let Some((name, rest)) = call.split_once('(') else { return };
        // Without a result it is a signal or the end of the process.
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        let Ok(result) = result.split_whitespace().next().unwrap_or_default().parse::<i64>() else { return };
        if result < 0 {
            return;
        }
        let paths: Vec<PathBuf> = arguments.split('"').skip(1).step_by(2).map(PathBuf::from).collect();
        let first = arguments.split([',', ')']).next().and_then(|text| text.trim().parse::<u32>().ok());
        let descriptor = u32::try_from(result).unwrap_or(u32::MAX);
        match name {
            "open" | "openat" => self.open(descriptor, &paths[0], arguments),
            "close" => {
                self.files.remove(&first.expect("close has a descriptor"));
                self.folders.remove(&first.expect("close has a descriptor"));
            }
            "fcntl" | "dup" if name == "dup" || arguments.contains("F_DUPFD") => {
                if let Some(file) = first.and_then(|of| self.files.get(&of).copied()) {
                    self.files.insert(descriptor, file);
                }
            }
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" | "ftruncate" | "fallocate" => {
                if let Some(file) = first.and_then(|of| self.files.get(&of)) {
                    self.events.push(Event::Written(*file));
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(file) = first.and_then(|of| self.files.get(&of)) {
                    self.events.push(Event::Synced { file: *file, began });
                } else if let Some(path) = first.and_then(|of| self.folders.get(&of)) {
                    self.events.push(Event::FolderSynced { path: path.clone(), began });
                }
            }
            "link" | "linkat" => {
                let [from, to] = &paths[..] else { panic!("two paths: {call}") };
                let Some(path) = self.inside(to) else { return };
                let descriptor = from.strip_prefix("/proc/self/fd").ok().and_then(|fd| fd.to_str()?.parse().ok());
                let file = descriptor.and_then(|descriptor: u32| self.files.get(&descriptor));
                let file = *file.unwrap_or_else(|| panic!("only open files are linked: {call}"));
                self.events.push(Event::Linked { file, path });
            }
            "unlink" | "unlinkat" => self.events.extend(self.inside(&paths[0]).map(Event::Unlinked)),
            "mkdir" | "mkdirat" => self.events.extend(self.inside(&paths[0]).map(Event::Made)),
            "rename" | "renameat" | "renameat2" | "copy_file_range" => {
                assert!(paths.iter().all(|path| self.inside(path).is_none()), "not in this model: {call}");
            }
            _ => {}
        }
    }

    fn open(&mut self, descriptor: u32, path: &Path, arguments: &str) {
        self.files.remove(&descriptor);
        self.folders.remove(&descriptor);
        let Some(path) = self.inside(path) else { return };
        if arguments.contains("O_TMPFILE") || arguments.contains("O_CREAT") {
            self.files.insert(descriptor, self.next);
            self.next += 1;
        } else if self.root.join(&path).is_dir() {
            self.folders.insert(descriptor, path);
        }
    }

    /// A path relative to the root, when it is below it and not below what is left out.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let path = path.strip_prefix(self.root).ok()?;
        (!self.without.iter().any(|without| path.starts_with(without))).then(|| path.to_owned())
    }
}

/// All states that a power cut may leave, of a folder that held `before`.
pub fn states(events: &[Event], before: &BTreeSet<PathBuf>) -> BTreeSet<State> {
    let mut states = BTreeSet::new();
    for end in 0..=events.len() {
        for (names, removals) in [(false, false), (false, true), (true, false), (true, true)] {
            states.insert(state(&events[..end], before, names, removals));
        }
    }
    states
}

fn state(events: &[Event], before: &BTreeSet<PathBuf>, names: bool, removals: bool) -> State {
    let in_folder = |at: usize, path: &Path| {
        let folder = path.parent().expect("a name is in a folder");
        events.iter().any(|event| matches!(event, Event::FolderSynced { path, began } if path == folder && *began > at))
    };
    let whole = |file: usize| {
        let last = events.iter().rposition(|event| *event == Event::Written(file));
        let synced = |at| {
            let syncs =
                |event: &Event| matches!(event, Event::Synced { file: of, began } if *of == file && *began > at);
            events.iter().any(syncs)
        };
        last.is_none_or(synced)
    };
    let mut state: State = before.iter().map(|path| (path.clone(), true)).collect();
    let mut missing_folders = BTreeSet::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Made(path) if !names && !in_folder(at, path) => {
                missing_folders.insert(path.clone());
            }
            Event::Linked { file, path } if names || in_folder(at, path) => {
                state.insert(path.clone(), whole(*file));
            }
            Event::Unlinked(path) if removals || in_folder(at, path) => {
                state.remove(path);
            }
            _ => {}
        }
    }
    state.retain(|path, _| !path.parent().is_some_and(|folder| missing_folders.contains(folder)));
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        match words[0] {
            "write" => Event::Written(number(1)),
            "sync" => Event::Synced { file: number(1), began: number(2) },
            "link" => Event::Linked { file: number(1), path: words[2].into() },
            "unlink" => Event::Unlinked(words[1].into()),
            "make" => Event::Made(words[1].into()),
            "folder" => Event::FolderSynced { path: words[1].into(), began: number(2) },
            other => panic!("{other}"),
        }
    }

    fn possible(events: &[&str], before: &[&str]) -> BTreeSet<Vec<(String, bool)>> {
        let events: Vec<Event> = events.iter().map(|text| event(text)).collect();
        let before = before.iter().map(PathBuf::from).collect();
        let plain = |state: State| state.into_iter().map(|(path, whole)| (path.display().to_string(), whole)).collect();
        states(&events, &before).into_iter().map(plain).collect()
    }

    fn names(names: &[(&str, bool)]) -> Vec<(String, bool)> {
        names.iter().map(|(name, whole)| ((*name).to_owned(), *whole)).collect()
    }

    #[test]
    fn a_name_is_certain_once_its_folder_was_synced_and_bytes_once_the_file_was() {
        let all = possible(&["write 0", "link 0 a/x", "folder a 2", "sync 0 3"], &[]);
        assert_eq!(all, BTreeSet::from([names(&[]), names(&[("a/x", false)]), names(&[("a/x", true)])]));
        let careful = possible(&["write 0", "sync 0 1", "link 0 a/x", "folder a 3"], &[]);
        assert_eq!(careful, BTreeSet::from([names(&[]), names(&[("a/x", true)])]));
    }

    #[test]
    fn a_sync_that_began_earlier_makes_nothing_certain() {
        let written_meanwhile = possible(&["write 0", "write 0", "sync 0 1", "link 0 a/x"], &[]);
        assert!(written_meanwhile.contains(&names(&[("a/x", false)])));
    }

    #[test]
    fn removals_may_happen_before_or_after_names_and_a_new_folder_may_be_missing() {
        let all =
            possible(&["make a/b", "write 0", "sync 0 2", "link 0 a/b/x", "folder a/b 4", "unlink c/y"], &["c/y"]);
        let end =
            [names(&[]), names(&[("a/b/x", true)]), names(&[("a/b/x", true), ("c/y", true)]), names(&[("c/y", true)])];
        assert_eq!(all, BTreeSet::from(end));
    }
}
