//! A congestion window that does not shrink.
//!
//! Sessions carry status messages: a few hundred bytes a beat, bounded by the sender's clock and the datagram
//! buffer, not by acknowledgements. An adaptive controller would answer the loss of a cut cable by silencing the
//! very messages that show the cable is back. Bulk data does not belong on these sessions.

use core::any::Any;
use quinn::congestion::{Controller, ControllerFactory};
use std::sync::Arc;
use std::time::Instant;

/// Bytes that may be in flight: a few of the longest messages, or a lease full of beats many times over.
const WINDOW: u64 = 256 * 1024;

/// The controller and its factory: there is no state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FixedWindow;

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(FixedWindow)
    }
}

impl Controller for FixedWindow {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        WINDOW
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
