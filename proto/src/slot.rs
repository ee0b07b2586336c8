//! The two slots of a node: partitions that hold a boot file each, of which one runs.

use core::fmt;
use core::ops::{Index, IndexMut};
use serde::{Deserialize, Serialize};

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    A,
    B,
}

impl Slot {
    /// Both, in the loader's order.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// Name of its partition, and label of the file system in it.
    pub const fn name(self) -> &'static str {
        match self {
            Slot::A => "SLOT-A",
            Slot::B => "SLOT-B",
        }
    }

    /// Name of the partition with the loader's environment for it.
    pub const fn environment(self) -> &'static str {
        match self {
            Slot::A => "ENV-A",
            Slot::B => "ENV-B",
        }
    }

    /// The slot with this partition name.
    ///
    /// ```
    /// use proto::slot::Slot;
    /// assert_eq!(Slot::from_name("SLOT-B"), Some(Slot::B));
    /// assert_eq!(Slot::from_name("RESCUE"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|slot| slot.name() == name)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One of something for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    pub a: T,
    pub b: T,
}

impl<T> Pair<T> {
    /// Both, made alike.
    pub fn of(mut make: impl FnMut(Slot) -> T) -> Pair<T> {
        Pair { a: make(Slot::A), b: make(Slot::B) }
    }
}

impl<T> Index<Slot> for Pair<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

impl<T> IndexMut<Slot> for Pair<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}
