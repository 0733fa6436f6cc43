"""The broker: releases keys to workers whose evidence satisfies a policy, and writes down why."""
