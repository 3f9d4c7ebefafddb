//! Test doubles and builders: manual clock, seeded randomness, test authority.
