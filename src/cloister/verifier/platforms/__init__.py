"""Each platform's evidence from first byte to last claim: parse, authenticate, appraise."""
