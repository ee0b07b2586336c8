//! The way down when PID 1 itself fails: a fatal signal or a panic, written down and ended by a restart.
//!
//! ```text
//! signal, panic --> line to the kernel's log --> child writes the sector --done, or WRITE_LIMIT--> restart --> exit
//!                        '------- a second fault anywhere ------------------------------------------^
//! ```
//! Everything after the fault runs in a signal handler on a stack of its own, on memory of which nothing may be
//! believed: no allocation, no lock, nothing that was not made ready before (signal-safety(7)). The write may hang in
//! a dead disk for ever, and no signal ends that: it is left to a child, and PID 1 waits for it as long as it may. The
//! watchdog is fed by nobody meanwhile, so that it bounds what this file cannot.
//!
//! Where things are written and what a restart is, is the caller's.

use std::cell::UnsafeCell;
use std::fmt::{self, Write};
use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use libc::{c_int, c_void};

use super::check;
use crate::boot::block_file::SECTOR;
use crate::boot::crash_record::{self, Crash, Line};

/// What ends a program and comes from its own doing.
const SIGNALS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];
/// Bytes of the handler's stack: a signal frame with every register of the newest processors takes 11 KiB.
const STACK_LEN: usize = 32 << 10;
/// How long the write may take, in milliseconds. With it a crash restarts the machine within a second.
const WRITE_LIMIT_MS: i64 = 800;
/// Exit code of a crash that could not restart anything: "internal software error" of sysexits(3).
const EXIT_CODE: c_int = 70;
/// Bytes of the line for the kernel's log.
const LINE_MAX: usize = 400;

/// Memory that only the handler uses, or nobody but the one thread before it.
#[repr(align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: init has one thread. The handler interrupts it and never returns, so that there are no two users at a time;
// what it finds half written is a sector that misses a field.
unsafe impl<T> Sync for Shared<T> {}

static STACK: Shared<[u8; STACK_LEN]> = Shared(UnsafeCell::new([0; STACK_LEN]));
static RECORD: Shared<[u8; SECTOR]> = Shared(UnsafeCell::new([0; SECTOR]));
/// The file on STATE; -1 while there is none.
static FILE: AtomicI32 = AtomicI32::new(-1);
/// The kernel's log or standard error; -1 for none.
static LOG: AtomicI32 = AtomicI32::new(-1);
/// The process whose crash this is about: children inherit handlers and panic hooks. 0 before [`install`].
static OWNER: AtomicI32 = AtomicI32::new(0);
/// How often it was entered.
static ENTERED: AtomicU32 = AtomicU32::new(0);
/// What restarts the machine: a `fn()`, null for none.
static RESTART: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// From now on a fatal signal of this process takes the road above. `log` gets a line; `restart` must be
/// async-signal-safe and returns only if the machine cannot be restarted.
///
/// # Errors
/// The kernel's; signals may be set in part.
pub(crate) fn install(log: Option<File>, restart: Option<fn()>) -> io::Result<()> {
    LOG.store(log.map_or(libc::STDERR_FILENO, IntoRawFd::into_raw_fd), Ordering::Relaxed);
    RESTART.store(restart.map_or(std::ptr::null_mut(), |f| f as *mut c_void), Ordering::Relaxed);
    OWNER.store(this_process(), Ordering::Relaxed);
    let stack = libc::stack_t { ss_sp: STACK.0.get().cast(), ss_flags: 0, ss_size: STACK_LEN };
    // SAFETY: the stack is a static that nobody else uses.
    check(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) })?;
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    // A second fault must get in again: blocked, the kernel would kill PID 1, which is a kernel panic.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in SIGNALS {
        // SAFETY: the handler has the three-argument form that SA_SIGINFO asks for and is async-signal-safe.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// The sector that a crash fills in.
pub(crate) fn prepare(record: &[u8; SECTOR]) {
    // SAFETY: see Shared: one thread, and this is it.
    unsafe { *RECORD.0.get() = *record };
}

/// Where a crash is written, at offset 0: a file whose writes return when they are on the disk. It stays open, so
/// that its file system cannot be unmounted before [`take_file`].
pub(crate) fn set_file(file: File) {
    drop(take_file());
    FILE.store(file.into_raw_fd(), Ordering::Relaxed);
}

/// The number of the file that a crash is written to, for the program that takes over.
pub(crate) fn file() -> Option<c_int> {
    Some(FILE.load(Ordering::Relaxed)).filter(|fd| *fd >= 0)
}

/// Ends the writing; `None` when there was no file.
pub(crate) fn take_file() -> Option<File> {
    match FILE.swap(-1, Ordering::Relaxed) {
        -1 => None,
        fd => Some(super::owned(fd).into()),
    }
}

/// Takes the road down for a panic that says `what`. Returns at once in a child, which may die of its own.
pub(crate) fn panicked(what: &dyn fmt::Display) {
    if OWNER.load(Ordering::Relaxed) == this_process() {
        go_down(&Crash { base: base(), uptime_ms: uptime_ms(), ..Crash::default() }, what);
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    if OWNER.load(Ordering::Relaxed) != this_process() {
        // A child between its birth and its exec.
        // SAFETY: ends this process, without exit handlers.
        unsafe { libc::_exit(128 + signal) }
    }
    // SAFETY: the kernel hands over one siginfo_t and one ucontext_t; which members count depends on the code, all
    // of them are integers inside of it.
    let (code, sender, address, instruction) =
        unsafe { ((*info).si_code, (*info).si_pid(), (*info).si_addr() as u64, instruction_of(context)) };
    let sent = code <= 0;
    let crash = Crash {
        signal,
        code,
        sender: if sent { sender.cast_unsigned() } else { 0 },
        address: if sent { 0 } else { address },
        instruction,
        base: base(),
        uptime_ms: uptime_ms(),
    };
    go_down(&crash, &"no more is known");
}

/// Writes the crash down and restarts the machine.
fn go_down(crash: &Crash, what: &dyn fmt::Display) -> ! {
    match ENTERED.fetch_add(1, Ordering::Relaxed) {
        0 => write_down(crash, what),
        // A fault while it was written down: that is not tried again.
        1 => {}
        // SAFETY: ends this process; see below.
        _ => unsafe { libc::_exit(EXIT_CODE) },
    }
    let restart = RESTART.load(Ordering::Relaxed);
    if !restart.is_null() {
        // SAFETY: only install() stores here, and what it stores is a fn().
        let restart: fn() = unsafe { std::mem::transmute(restart) };
        restart();
    }
    // SAFETY: ends this process. Of the machine's PID 1 that is a kernel panic, which restarts it as well.
    unsafe { libc::_exit(EXIT_CODE) }
}

fn write_down(crash: &Crash, what: &dyn fmt::Display) {
    say(crash, what);
    let file = FILE.load(Ordering::Relaxed);
    if file >= 0 {
        // SAFETY: see Shared; nothing else will use it in this process's life.
        let record = unsafe { &mut *RECORD.0.get() };
        crash_record::fill(record, crash, what);
        write_within(file, record);
    }
}

/// One line for the kernel's log.
fn say(crash: &Crash, what: &dyn fmt::Display) {
    let mut buffer = [0; LINE_MAX];
    let mut line = Line { buffer: &mut buffer, len: 0 };
    let _ = write!(line, "<2>init: {crash}: {what}; restarting the machine");
    let len = line.len;
    // SAFETY: the buffer is longer than `len`. The descriptor does not block: kmsg never does.
    unsafe { libc::write(LOG.load(Ordering::Relaxed), buffer.as_ptr().cast(), len) };
}

/// Has a child write `record` to `file` and waits for it, for [`WRITE_LIMIT_MS`] at most.
fn write_within(file: c_int, record: &[u8; SECTOR]) {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without a stack the child runs on a copy of this one. The bare call, because fork(3) takes locks that
    // the fault may have left held. The kernel writes the pidfd to the int.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    if child <= 0 {
        // The child; or there can be none, and a disk that hangs is left to the watchdog.
        // SAFETY: reads the record.
        unsafe { libc::pwrite(file, record.as_ptr().cast(), record.len(), 0) };
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        return;
    }
    let until = monotonic_ms() + WRITE_LIMIT_MS;
    loop {
        let left = until - monotonic_ms();
        let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd. A pidfd is readable when its process has ended; only a signal leads back here.
        if left <= 0 || unsafe { libc::poll(&raw mut poll, 1, left as c_int) } >= 0 {
            return;
        }
    }
}

/// The address of the instruction a signal came at.
///
/// # Safety
/// `context` is the third argument of a handler.
#[cfg(target_arch = "x86_64")]
unsafe fn instruction_of(context: *mut c_void) -> u64 {
    let context: *const libc::ucontext_t = context.cast();
    // SAFETY: the caller's promise.
    let registers = unsafe { (*context).uc_mcontext.gregs };
    registers[libc::REG_RIP as usize].cast_unsigned()
}

/// Not known on this architecture.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn instruction_of(_context: *mut c_void) -> u64 {
    0
}

/// Where the program is loaded: the page of its first header (getauxval(3)).
fn base() -> u64 {
    // SAFETY: an integer in, an integer out.
    unsafe { libc::getauxval(libc::AT_PHDR) & !0xfff }
}

/// This process's number, from the kernel.
fn this_process() -> c_int {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() }
}

fn uptime_ms() -> u64 {
    milliseconds(libc::CLOCK_BOOTTIME).cast_unsigned()
}

fn monotonic_ms() -> i64 {
    milliseconds(libc::CLOCK_MONOTONIC)
}

fn milliseconds(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}
