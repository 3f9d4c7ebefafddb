//! What an identity is: types and pure rules, with no I/O, no clock and no cryptography.
