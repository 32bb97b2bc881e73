"""The stages of an audit, one folder each, in the order that ``registry`` lists.

``stages/<name>/stage.py`` has the stage's settings, inputs, ``run``, cost and ``STAGE``; beside it
lies its mathematics, modules that know arrays only. ``stages/base`` is what all of them share.
Only ``runner`` and ``cli`` import stages; a stage imports only stages that run before it.
"""
