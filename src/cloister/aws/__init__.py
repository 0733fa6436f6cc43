"""AWS KMS from where attestation counts: an enclave, or an instance with a NitroTPM.

No AWS SDK: two operations, their signature and one envelope format are all that is needed, and
every byte of it can be read here.
"""
