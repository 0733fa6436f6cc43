"""Launch recipes: what it takes to start a built image on a platform, as a plan.

A plan is a list of steps that can be read before anything happens, printed as commands, or
carried out by the platform's own tools. Nothing here holds a credential: those tools have
their own.
"""
