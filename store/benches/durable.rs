//! What one durable write costs on this disk, ours beside its peers: `cargo bench -p evenkeel-store`.
//!
//! The cases take turns, so that a slow moment of the disk meets all of them.

#![allow(clippy::unwrap_used)] // A bench ends with the first error.

use proto::{envelope::Message, record::NodeRecord};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use store::Record;
use store::journal::{Draft, Journal, Options};

/// Writes of each case.
const ROUNDS: usize = 300;
const BLOCK: usize = 4096;
const TABLE: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("facts");

fn main() {
    let dir = std::env::current_dir().unwrap().join(format!("bench-{}.tmp", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let mut cases = cases(&dir);
    let mut times: Vec<Vec<Duration>> = vec![vec![]; cases.len()];
    for round in 0..ROUNDS {
        for (case, times) in cases.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (case.1)(round);
            times.push(start.elapsed());
        }
    }
    println!("{:46} {:>8} {:>8}   microseconds, {ROUNDS} writes each", "durable write", "p50", "p99");
    for ((name, _), mut times) in cases.into_iter().zip(times) {
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_micros();
        println!("{name:46} {:>8} {:>8}", at(50), at(99));
    }
    fs::remove_dir_all(&dir).unwrap();
}

type Case = (&'static str, Box<dyn FnMut(usize)>);

fn cases(dir: &Path) -> Vec<Case> {
    let node = |n: usize| NodeRecord { boot_count: n as u64, boot_id: "b".repeat(36), ..Default::default() };
    let message = move |n: usize| proto::envelope::encode(&node(n));
    let mut cases: Vec<Case> = Vec::new();

    let mut record = Record::create(&dir.join("record"), node(0)).unwrap();
    cases.push(("record: put", Box::new(move |n| record.put(node(n)).unwrap())));
    for (name, file, batch) in [("journal: append 1", "one", 1), ("journal: append 10", "ten", 10)] {
        let options = Options::new(&[(NodeRecord::KIND, NodeRecord::VERSION)]);
        let mut journal = Journal::create(&dir.join(file), options).unwrap();
        let append = move |n| {
            let drafts: Vec<Draft> = (0..batch).map(|_| Draft::binding(&node(n))).collect();
            journal.append(&drafts).unwrap();
        };
        cases.push((name, Box::new(append)));
    }

    for (name, file, batch) in [("redb: commit 1", "redb-one", 1), ("redb: commit 10", "redb-ten", 10)] {
        let database = redb::Database::create(dir.join(file)).unwrap();
        let commit = move |n: usize| {
            let write = database.begin_write().unwrap();
            let mut table = write.open_table(TABLE).unwrap();
            for i in 0..batch {
                table.insert((n * batch + i) as u64, message(n).as_slice()).unwrap();
            }
            drop(table);
            write.commit().unwrap();
        };
        cases.push((name, Box::new(commit)));
    }
    let (folder, target, temporary) = (dir.to_owned(), dir.join("whole"), dir.join("whole.new"));
    let replace = move |n| {
        let mut file = File::create(&temporary).unwrap();
        file.write_all(&message(n)).unwrap();
        file.sync_all().unwrap();
        fs::rename(&temporary, &target).unwrap();
        File::open(&folder).unwrap().sync_all().unwrap();
    };
    cases.push(("tmp + rename + fsync of file and directory", Box::new(replace)));

    // Why the journal writes zeros first: the same 4 KiB and fdatasync on three kinds of room.
    for (name, file, prepared) in [
        ("4 KiB + fdatasync, file grows", "grows", 0),
        ("4 KiB + fdatasync, room allocated only", "allocated", 1),
        ("4 KiB + fdatasync, room written with zeros", "zeroed", 2),
    ] {
        let file = File::create(dir.join(file)).unwrap();
        let len = (ROUNDS * BLOCK) as i64;
        if prepared > 0 {
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len).unwrap();
        }
        if prepared > 1 {
            file.write_all_at(&vec![0; ROUNDS * BLOCK], 0).unwrap();
        }
        file.sync_all().unwrap();
        let write = move |n: usize| {
            file.write_all_at(&[7; BLOCK], (n * BLOCK) as u64).unwrap();
            file.sync_data().unwrap();
        };
        cases.push((name, Box::new(write)));
    }
    cases
}
