//! Keys, CSRs, X.509, JWT, WIT and SPIFFE bundles as bytes: build, parse, verify.
