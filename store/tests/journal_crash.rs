//! Journals and records on a disk whose power is cut at every step, and on one that fails at every step.
//!
//! Every image that may be found then must hold what was there before the operation or what is there after it, and the
//! latter once the operation was acknowledged. What is found must be usable.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{BLOCK, Fact, NAME, NEW, OLD, create, fact, facts, found, name, open, vote};
use nix::errno::Errno;
use std::path::Path;
use store::crash::{CrashFolder, Fault};
use store::folder::{Replace, place};
use store::journal::{Content, Draft, Journal, JournalError, Tail};
use store::{FileMedium, Record};

type Found = Option<Vec<(u64, String)>>;

/// Does something and tells whether it was acknowledged.
type Operation<'a> = &'a dyn Fn(&CrashFolder) -> bool;

/// What `folder` holds; opening must succeed.
fn state(folder: &CrashFolder) -> (Found, Option<Content>) {
    match open(folder).unwrap_or_else(|e| panic!("cannot be opened: {e}")) {
        None => (None, None),
        Some((_, content)) => {
            let mut all = facts(&content);
            all.extend(content.unknown.iter().map(|u| (u.sequence, "unknown".into())));
            (Some(all), Some(content))
        }
    }
}

/// Cuts the power at every step of `operation`, which tells whether it was acknowledged; gives the number of states seen.
fn cut_everywhere(what: &str, start: &CrashFolder, operation: impl Fn(&CrashFolder) -> bool) -> usize {
    let before = state(&start.fork()).0;
    let whole = start.fork();
    assert!(operation(&whole), "{what}: it works while the power is on");
    let steps = whole.used();
    let after = state(&whole.fork()).0;
    let (mut states, mut seen) = (0, [0, 0]);
    for cut in 0..=steps {
        let folder = start.fork();
        folder.cut_after(cut);
        let acknowledged = operation(&folder);
        assert_eq!(acknowledged, cut == steps, "{what}: cut after {cut} of {steps}");
        // The process dies and is started anew: what it finds then, a power cut after that must leave.
        let again = folder.fork();
        let seen_again = state(&again).0;
        again.survivors(|survivor| {
            states += 1;
            assert_eq!(state(&survivor).0, seen_again, "{what}: killed after {cut}");
        });
        folder.survivors(|survivor| {
            states += 1;
            let (content, whole) = state(&survivor);
            assert!(
                content == after || !acknowledged && content == before,
                "{what}: cut after {cut}: {content:?}"
            );
            if let (true, Some(whole)) = (acknowledged, &whole) {
                assert_eq!(whole.tail, Tail::Clean, "{what}");
            }
            seen[usize::from(content == after)] += 1;
            let extra: Vec<_> =
                survivor.names().into_iter().filter(|n| content.is_some() && n != name()).collect();
            assert!(extra.is_empty(), "{what}: {extra:?} is left over after an open");
            // What is found is usable, and what was lost is not forgotten.
            if states % 5 == 0 {
                usable(&survivor, whole);
            }
        });
    }
    assert!(before == after || seen[0] > 0 && seen[1] > 0, "{what}: both outcomes occur: {seen:?}");
    println!("{what}: {} cuts, {states} states", steps + 1);
    states
}

fn usable(folder: &CrashFolder, content: Option<Content>) {
    let Some(content) = content else { return drop(create(folder)) };
    let (mut journal, _) = open(folder).unwrap().unwrap();
    let number = journal.append(&[fact("more")]).unwrap().start;
    let (_, again) = open(folder).unwrap().unwrap();
    let mut expected = content.entries.clone();
    expected.push(again.entries.last().unwrap().clone());
    assert_eq!((again.entries.len(), again.entries), (expected.len(), expected));
    let damaged = content.tail != Tail::Clean;
    assert_eq!((again.tail, again.losses.contains(&number)), (Tail::Clean, damaged));
}

fn appended(folder: &CrashFolder, drafts: &[Draft]) -> bool {
    let Ok(Some((mut journal, _))) = open(folder) else { return false };
    let done = journal.append(drafts).is_ok();
    if !done {
        assert!(matches!(journal.append(drafts), Err(JournalError::Poisoned { .. })), "no second try");
        assert!(matches!(journal.compact(|_| true, drafts), Err(JournalError::Poisoned { .. })));
    }
    done
}

fn compacted(folder: &CrashFolder, more: &[Draft]) -> bool {
    let Ok(Some((mut journal, content))) = open(folder) else { return false };
    let last = content.entries.last().map(|e| e.sequence);
    journal.compact(|e| Some(e.sequence) == last, more).is_ok()
}

/// A journal with `texts`, one append each.
fn journal_with(sector: usize, texts: &[&str]) -> CrashFolder {
    let folder = CrashFolder::new(sector);
    let mut journal = create(&folder);
    for text in texts {
        journal.append(&[fact(*text)]).unwrap();
    }
    folder
}

#[test]
fn power_cut_at_every_step_of_every_operation() {
    let mut states = 0;
    for sector in [512, 4096] {
        let mut cut = |what: &str, start: &CrashFolder, operation: Operation<'_>| {
            states += cut_everywhere(&format!("{what}, sectors of {sector}"), start, operation);
        };
        cut("create", &CrashFolder::new(sector), &|folder| {
            Journal::create_in(folder.clone(), name(), Path::new(NAME), OLD).is_ok()
        });
        // Two blocks are set aside at a time: the second append fits, the third makes the file longer.
        let one = journal_with(sector, &["one"]);
        cut("append", &one, &|folder| appended(folder, &[fact("two")]));
        let two = journal_with(sector, &["one", "two"]);
        // Where it grows, the disk shows blocks that this journal wrote once, at this very place, under another identity.
        let mut stale = two.bytes(name()).unwrap().repeat(2);
        stale[4 * BLOCK..].fill(0x5a);
        two.set_stale(stale);
        cut("append that grows", &two, &|folder| appended(folder, &[fact("three")]));
        let batch = [fact("a"), fact("b".repeat(5000)), vote(3), fact("d")];
        cut("append of a batch", &two, &|folder| appended(folder, &batch));
        cut("compaction", &two, &|folder| compacted(folder, &[]));
        if sector == BLOCK {
            cut("compaction that adds", &two, &|folder| compacted(folder, &[fact("a"), fact("b")]));
        }
        let with_unknown = journal_with(sector, &["one"]);
        let (mut journal, _) =
            Journal::open_in(with_unknown.clone(), name(), Path::new(NAME), NEW).unwrap().unwrap();
        journal.append(&[vote(7), fact("three")]).unwrap();
        if sector == BLOCK {
            cut("compaction over an unknown entry", &with_unknown, &|folder| compacted(folder, &[]));
        }
        // The end is damaged: what is appended then must tell of it in one step.
        let damaged = journal_with(sector, &["one", "two", "three"]);
        let mut bytes = damaged.bytes(name()).unwrap();
        bytes[4 * BLOCK + 33] ^= 1;
        damaged.set_bytes(name(), bytes);
        cut("append behind remains", &damaged, &|folder| appended(folder, &[fact("four")]));
        if sector == BLOCK {
            cut("compaction over remains", &damaged, &|folder| compacted(folder, &[fact("four")]));
        }
        // Opening removes what an interrupted compaction left.
        let leftover = two.fork();
        leftover.set_bytes(&store::folder::temporary(name()), vec![0xaa; 9000]);
        cut("open with a leftover", &leftover, &|folder| matches!(open(folder), Ok(Some(_))));
    }
    println!("{states} states in all");
    assert!(states > 100_000, "{states} are fewer than there were");
}

/// The loss itself survives: behind remains, no image forgets that something may be lost.
#[test]
fn no_cut_makes_a_loss_be_forgotten() {
    let start = journal_with(512, &["one", "two", "three"]);
    let mut bytes = start.bytes(name()).unwrap();
    bytes[4 * BLOCK + 33] ^= 1;
    start.set_bytes(name(), bytes);
    for operation in
        [|f: &CrashFolder| appended(f, &[fact("4")]), |f: &CrashFolder| compacted(f, &[fact("4")])]
    {
        let whole = start.fork();
        assert!(operation(&whole));
        for cut in 0..=whole.used() {
            let folder = start.fork();
            folder.cut_after(cut);
            operation(&folder);
            folder.survivors(|survivor| {
                let (_, content) = open(&survivor).unwrap().unwrap();
                assert!(content.abstains(3), "cut after {cut}: {content:?}");
            });
        }
    }
}

#[test]
fn records_are_made_and_put_in_one_step_too() {
    let note = |text: &str| Fact { text: text.into() };
    // The same two-slot file with a shorter message than `Fact` may be: 4 KiB a slot.
    let image = {
        let mut image = Record::<Fact, FileMedium>::image(&note("one"));
        image.truncate(4096);
        image.resize(8192, 0);
        image
    };
    let load = |folder: &CrashFolder| {
        let file = store::folder::Folder::open(&mut folder.clone(), name()).ok()??;
        Some(Record::<Fact, _>::load(file, Path::new(NAME)).map(|r| r.get().text.clone()))
    };
    for sector in [512, 4096] {
        let start = CrashFolder::new(sector);
        let make = |folder: &CrashFolder| place(&mut folder.clone(), name(), &image, Replace::Never).is_ok();
        let put = |folder: &CrashFolder| {
            let Ok(Some(file)) = store::folder::Folder::open(&mut folder.clone(), name()) else {
                return false;
            };
            Record::<Fact, _>::load(file, Path::new(NAME)).and_then(|mut r| r.put(note("two"))).is_ok()
        };
        let made = start.fork();
        assert!(make(&made));
        let operations: [(_, Operation<'_>, _, _); 2] =
            [(&start, &make, None, "one"), (&made, &put, Some("one"), "two")];
        for (start, operation, before, after) in operations {
            let whole = start.fork();
            assert!(operation(&whole));
            let mut states = 0;
            for cut in 0..=whole.used() {
                let folder = start.fork();
                folder.cut_after(cut);
                let acknowledged = operation(&folder);
                folder.survivors(|survivor| {
                    states += 1;
                    let text = load(&survivor).map(|r| r.unwrap_or_else(|e| panic!("cut after {cut}: {e}")));
                    assert!(
                        text.as_deref() == Some(after) || !acknowledged && text.as_deref() == before,
                        "cut after {cut}: {text:?}"
                    );
                });
            }
            println!("record {before:?} to {after:?}, sectors of {sector}: {states} states");
        }
    }
}

#[test]
fn a_disk_that_fails_at_any_step_leaves_what_was_acknowledged() {
    let start = journal_with(512, &["one", "two"]);
    let before = found(&start);
    let batch = [fact("three"), fact("x".repeat(5000))];
    for errno in [Errno::ENOSPC, Errno::EIO, Errno::EROFS, Errno::EDQUOT] {
        for compact in [false, true] {
            let run = |folder: &CrashFolder, fault| {
                let (mut journal, _) = open(folder).unwrap().unwrap();
                let first = folder.used();
                folder.set_fault(fault);
                let result = match compact {
                    true => journal.compact(|_| true, &batch),
                    false => journal.append(&batch),
                };
                (journal, result, folder.used() - first)
            };
            let (_, result, steps) = run(&start.fork(), None);
            result.unwrap();
            let opening = {
                let folder = start.fork();
                open(&folder).unwrap();
                folder.used()
            };
            let mut unchanged = 0;
            for step in opening..opening + steps {
                let folder = start.fork();
                let (mut journal, result, _) =
                    run(&folder, Some(Fault { step, errno: errno as i32, lasting: true }));
                let error = result.unwrap_err();
                // It can be read while the disk fails.
                let bytes = folder.bytes(name()).unwrap();
                let looked = CrashFolder::new(512);
                looked.set_bytes(name(), bytes);
                assert!(found(&looked).starts_with(&before), "{errno} at {step}");
                folder.set_fault(None);
                // A journal that is not poisoned is as it was, and goes on.
                match journal.append(&[fact("later")]) {
                    Ok(_) => {
                        unchanged += 1;
                        let all = found(&folder);
                        assert_eq!(
                            (&all[..2], all[2].1.as_str()),
                            (&before[..], "later"),
                            "{errno} at {step}"
                        );
                    }
                    Err(JournalError::Poisoned { .. }) => {
                        folder.survivors(|survivor| {
                            let all = found(&survivor);
                            assert!(all == before || all.len() == 4, "{errno} at {step}: {all:?}");
                        });
                    }
                    Err(e) => panic!("{errno} at {step}: {e}"),
                }
                let full = matches!(errno, Errno::ENOSPC | Errno::EDQUOT);
                assert_eq!(
                    matches!(error, JournalError::NoSpace { .. }),
                    full && (compact || step == opening),
                    "{errno} at {step}: {error:?}"
                );
            }
            // An append meets the full disk before it writes; a compaction spoils nothing before its rename.
            let expected = match compact {
                true => steps - 2,
                false => usize::from(matches!(errno, Errno::ENOSPC | Errno::EDQUOT)),
            };
            assert_eq!(unchanged, expected, "{errno}, compaction {compact}");
        }
    }
}

#[test]
fn the_last_room_of_a_full_disk_is_used() {
    let start = journal_with(512, &["one", "two"]);
    let (mut journal, _) = open(&start).unwrap().unwrap();
    // The first try, for two blocks, finds the disk full; the one for the one block that is needed does not.
    start.set_fault(Some(Fault { step: start.used(), errno: Errno::ENOSPC as i32, lasting: false }));
    journal.append(&[fact("three")]).unwrap();
    assert_eq!(start.bytes(name()).unwrap().len(), 5 * BLOCK);
    assert_eq!(found(&start).len(), 3);
}

#[test]
fn a_block_that_cannot_be_read_is_damage_where_it_lies() {
    let folder = journal_with(512, &["one", "two", "three"]);
    let bad = |block: usize| {
        let folder = folder.fork();
        folder.set_unreadable(name(), (block * BLOCK + 7) as u64);
        folder
    };
    for header in [0, 1] {
        assert_eq!(found(&bad(header)).len(), 3, "the other copy does");
    }
    for block in [2, 3] {
        let refusal = open(&bad(block)).unwrap_err();
        assert!(matches!(refusal, JournalError::Damaged { sequence, .. } if sequence == block as u64 - 1));
    }
    let last = bad(4);
    let (_, content) = open(&last).unwrap().unwrap();
    assert!(matches!(content.tail, Tail::Damaged { sequence: 3, .. }));
    usable(&last, Some(content));
    // It was whole when it was opened: a compaction that cannot read it must not drop it.
    let folder = folder.fork();
    let (mut journal, _) = open(&folder).unwrap().unwrap();
    folder.set_unreadable(name(), 4 * BLOCK as u64);
    assert!(matches!(journal.compact(|_| true, &[fact("x")]), Err(JournalError::Io { .. })));
}

#[test]
fn a_crashing_folder_loses_reorders_tears_and_shows_stale_bytes() {
    use store::folder::Folder;
    use store::{Growing, Medium};
    let mut folder = CrashFolder::new(512);
    folder.set_stale(vec![9; 2048]);
    let mut file = folder.create(name()).unwrap();
    file.grow(1024).unwrap();
    file.write_at(0, &[1; 1024]).unwrap();
    let seen = |folder: &CrashFolder| {
        let mut seen = vec![];
        folder.survivors(|s| seen.push(s.bytes(name())));
        seen
    };
    let all = seen(&folder);
    assert!(all.contains(&None) && all.contains(&Some(vec![])));
    assert!(all.contains(&Some(vec![9; 1024])), "longer, but with what was there before");
    assert!(all.iter().flatten().any(|b| b.len() == 1024 && b[0] == 9 && b[600] == 1), "reordered");
    assert!(all.iter().flatten().any(|b| b.len() == 1024 && b[199] == 1 && b[201] == 9), "torn");
    file.sync().unwrap();
    assert_eq!(seen(&folder), [None, Some(vec![1; 1024])], "its name is not durable yet");
    folder.sync().unwrap();
    assert_eq!(seen(&folder), [Some(vec![1; 1024])]);
    folder.rename(name(), std::ffi::OsStr::new("other")).unwrap();
    folder.survivors(|s| assert_eq!(s.names().len(), 1, "a rename is one step"));
}
