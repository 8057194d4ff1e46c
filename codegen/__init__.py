"""Schedules to text: what is emitted. Imported as `nlc.codegen`; depends on `nlc.ir` only."""
