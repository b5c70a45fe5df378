"""A proof that travels: written beside a compressed model, checked on any machine."""

from packlight.proof.make import Proof, make_proof
from packlight.proof.verification import Check, Verification
from packlight.proof.verify import verify

__all__ = ["Check", "Proof", "Verification", "make_proof", "verify"]
