//! The slots against a model of the loader and of a disk that loses power.

mod cuts;
mod files;
mod loader;
mod rules;
mod world;
