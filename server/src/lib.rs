//! The Bonafide server: holds a trust domain, attests nodes and signs SVIDs.
