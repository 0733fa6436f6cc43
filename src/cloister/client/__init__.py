"""The asking side: verifying transports, OpenAI helpers, local proxy, chat."""
