"""The forms of a network, which compute the same outputs in evaluation.

- ``'training'``: all parts, as the constructors build them.
- ``'reparameterized'``: the dilated branches are folded into the large convolutions. The authors
  publish weights for inference in this form. ``reparameterize()`` makes it, which ``ContMixBlock``
  also has under the authors' names, ``reparm()`` and ``deploy=True``.
- ``'fused'``: all that is constant in evaluation is folded. ``switch_to_deploy()`` makes it, and
  ``OverLoCK(deploy=True)`` builds it, for weights that were saved in it: mmpretrain's names.

The attribute ``form`` of a network or block says which form it is in, and
``overlock_mm.checkpoint.form_of`` says it of a state dict.
"""

FORMS = ('training', 'reparameterized', 'fused')
