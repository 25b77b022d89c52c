"""The faults that `make test-mutants` puts in, by wing, each with the tests that must notice."""

from mutants import Mutant

MUTANTS = []
