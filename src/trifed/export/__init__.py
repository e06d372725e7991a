"""Finished models of clients: located, exported, used for predictions, evaluated.

::

    locate             a run, an export or a folder of exports -> the clients' models in it
    inference_inputs   a file, standard input or flags -> the inputs of a model
    predict            inputs -> labels with probabilities, or answers
    evaluate           labelled inputs -> scores: of classifiers, language models, models of images and captions
    export             a client's model -> a folder in another form, with a model card
    card, templates/   the README.md of such a folder, and the code in it
"""
