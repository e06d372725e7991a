"""From nothing to a run between sites: folders with an app, certificates, keys and scripts for Flower.

::

    certificates   an authority of one's own, a server's certificate, a node's keys
    server         the server's folder           site   a client's folder
"""
