"""Attacks on what a configuration really sends: what could a curious server, or one that knows more, recover?"""
