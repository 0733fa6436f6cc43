"""Byte streams between two programs, whatever carries them: TCP, unix sockets, vsock, a port.

One syntax of addresses for those who listen and those who dial, a framing that makes many
streams of one, and a forwarder. Nothing here looks at what it carries: on every way that
Cloister uses these for, that is sealed or inside TLS.
"""
