//! The whole system, judged from outside: the command line, other people's clients, time.

mod demo;
mod interop;
mod lifecycle;
mod rotation;
