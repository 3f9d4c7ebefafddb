"""Drives a Workload API with the `spiffe` package from PyPI.

usage: interop.py --expect SPIFFE-ID [--audience A] [--serials N] [--timeout S]

The socket comes from SPIFFE_ENDPOINT_SOCKET. Each check prints "ok <name>"; the
first failure prints "FAIL <name>: why" and ends the program with status 1.
Tokens are verified a second time by PyJWT against the JWKS of the bundle, and
the chain by `cryptography`, neither of which knows of SPIFFE.
"""

import argparse
import sys
import threading
import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from spiffe import JwtSource, SpiffeId, WorkloadApiClient, X509Source


def check(name, condition, why=""):
    if not condition:
        print(f"FAIL {name}: {why}", flush=True)
        sys.exit(1)
    print("ok", name, flush=True)


def first_svid(client, seconds):
    """An entry that was just made takes a moment to reach the agent."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return client.fetch_x509_svid()
        except Exception as error:  # the package wraps the status
            if "no identity issued" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--expect", required=True)
    parser.add_argument("--audience", default="interop")
    parser.add_argument("--serials", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60)
    options = parser.parse_args()
    expected = SpiffeId(options.expect)
    own = expected.trust_domain

    with WorkloadApiClient(default_timeout=20) as client:
        svid = first_svid(client, options.timeout)
        check("fetch_x509_svid", svid.spiffe_id == expected, str(svid.spiffe_id))
        bundles = client.fetch_x509_bundles()
        roots = bundles.get_bundle_for_trust_domain(own).x509_authorities
        leaf, issuer = svid.cert_chain[0], None
        above = list(svid.cert_chain[1:]) + list(roots)
        for candidate in above:
            try:
                leaf.verify_directly_issued_by(candidate)
                issuer = candidate
            except Exception:  # not this one: the next may be
                continue
        check("leaf is issued by what the bundle holds", issuer is not None)
        leaf_key = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        own_key = svid.private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        check("private key belongs to the leaf", leaf_key == own_key)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        check("one URI SAN", names.get_values_for_type(x509.UniformResourceIdentifier) == [options.expect])

        token = client.fetch_jwt_svid(audience={options.audience})
        check("fetch_jwt_svid", token.spiffe_id == expected, str(token.spiffe_id))
        jwt_bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(own)
        kid = jwt.get_unverified_header(token.token)["kid"]
        claims = jwt.decode(
            token.token, jwt_bundle.jwt_authorities[kid],
            algorithms=["ES256", "ES384", "RS256"], audience=options.audience)
        check("PyJWT verifies the token", claims["sub"] == options.expect, str(claims))
        check("aud is a list", claims["aud"] == [options.audience], str(claims))
        check("no nbf", "nbf" not in claims, str(claims))
        validated = client.validate_jwt_svid(token.token, options.audience)
        check("validate_jwt_svid", validated.spiffe_id == expected)
        try:
            client.validate_jwt_svid(token.token, "somebody-else")
        except Exception:  # the refusal that is asked for
            print("ok validate_jwt_svid refuses another audience", flush=True)
        else:
            check("validate_jwt_svid refuses another audience", False, "it was accepted")

        # One stream, no reconnection: its end is an error.
        serials, errors, enough = set(), [], threading.Event()

        def updated(context):
            serials.add(context.default_svid.leaf.serial_number)
            if len(serials) >= options.serials:
                enough.set()

        def failed(error):
            errors.append(error)
            enough.set()

        stream = client.stream_x509_contexts(updated, failed, retry_connect=False)
        enough.wait(options.timeout)
        check("one stream sees rotations", len(serials) >= options.serials and not errors,
              f"{len(serials)} serials, errors {errors}")
        stream.cancel()

    with X509Source(timeout_in_seconds=20) as source:
        check("X509Source", source.svid.spiffe_id == expected)
    with JwtSource(timeout_in_seconds=20) as source:
        check("JwtSource", source.fetch_svid(audience={options.audience}).spiffe_id == expected)
    print("PASS", flush=True)


main()
