"""The sealed channel: HPKE, Binary HTTP, Oblivious HTTP, keysets, receipts. No I/O."""
