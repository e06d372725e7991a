"""A finished client's model: found, exported, asked for predictions, measured.

::

    find      runs and exports -> the clients in them     snippets   Python for a card, without this package
    export    one client -> a folder in another form      card       the README.md of such a folder
    stock     where transformers has the same class       texts      a file, stdin or flags -> texts
    predict   texts -> labels and probabilities           evaluate   labelled texts -> scores
"""
