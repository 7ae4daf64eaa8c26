"""Focal losses, by their formulas and autograd in float64."""

import torch

from tests.mmcv_ops.families import Family

CLASSES = 5


def random_logits(number, gamma=2.0, alpha=0.25, scale=4.0, weighted=False):
    def make(generator):
        logits = torch.randn(number, CLASSES, generator=generator, dtype=torch.float64) * scale
        weight = torch.rand(CLASSES if weighted else 0, generator=generator, dtype=torch.float64)
        return {
            'logits': logits,
            # CLASSES is background for the sigmoid.
            'target': torch.randint(0, CLASSES + (not weighted), (number,), generator=generator),
            'weight': weight,
            'gamma': gamma,
            'alpha': alpha,
        }

    return make


CASES = {
    'random': random_logits(40),
    'weighted': random_logits(40, weighted=True),
    'without focus': random_logits(20, gamma=0.0, alpha=0.5),
    'odd exponent': random_logits(20, gamma=1.5),
    'large logits': random_logits(20, scale=20.0),
    'one': random_logits(1),
    'empty': random_logits(0),
}


def class_weight(inputs):
    factors = torch.cat([inputs['weight'], torch.ones(1)]) if len(inputs['weight']) else None
    return factors[inputs['target']] if factors is not None else torch.ones(len(inputs['target']))


def define_sigmoid(inputs):
    logits = inputs['logits'].requires_grad_()
    hot = torch.nn.functional.one_hot(inputs['target'], CLASSES + 1)[:, :CLASSES].bool()
    # The logit of the truth: a logit of x for background is one of -x for foreground.
    right = torch.where(hot, logits, -logits)
    balance = torch.where(hot, inputs['alpha'], 1 - inputs['alpha'])
    log = torch.nn.functional.logsigmoid(right)
    loss = -balance * (-right).sigmoid() ** inputs['gamma'] * log
    loss = loss * class_weight(inputs)[:, None]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return {'loss': loss, 'grad': grad}


def call_sigmoid(ext, inputs):
    logits, rest = inputs['logits'], (inputs['target'], inputs['weight'])
    settings = {'gamma': inputs['gamma'], 'alpha': inputs['alpha']}
    loss, grad = torch.full_like(logits, torch.nan), torch.full_like(logits, torch.nan)
    ext.sigmoid_focal_loss_forward(logits, *rest, loss, **settings)
    ext.sigmoid_focal_loss_backward(logits, *rest, grad, **settings)
    return {'loss': loss, 'grad': grad}


def random_softmax(*settings, **more):
    """Probabilities in place of logits, and -1, which has no loss, in place of background."""

    def make(generator):
        inputs = random_logits(*settings, scale=1.0, **more)(generator)
        target = torch.where(inputs['target'] == CLASSES, -1, inputs['target'])
        return inputs | {'softmax': inputs.pop('logits').softmax(1), 'target': target}

    return make


SOFTMAX_CASES = {
    'random': random_softmax(40),
    'weighted': random_softmax(40, weighted=True),
    'without focus': random_softmax(20, gamma=0.0, alpha=0.5),
    'odd exponent': random_softmax(20, gamma=1.5),
    'one': random_softmax(1),
    'empty': random_softmax(0),
}


def define_softmax(inputs):
    logits, target = inputs['softmax'].log().requires_grad_(), inputs['target']
    log = logits.log_softmax(1)[torch.arange(len(target)), target]
    loss = -inputs['alpha'] * (1 - log.exp()) ** inputs['gamma'] * log * class_weight(inputs)
    loss = loss * (target >= 0)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return {'loss': loss, 'grad': grad}


def call_softmax(ext, inputs):
    softmax, rest = inputs['softmax'], (inputs['target'], inputs['weight'])
    settings = {'gamma': inputs['gamma'], 'alpha': inputs['alpha']}
    loss, grad = softmax.new_full((len(softmax),), torch.nan), torch.full_like(softmax, torch.nan)
    buffer = torch.zeros_like(loss)
    ext.softmax_focal_loss_forward(softmax, *rest, loss, **settings)
    ext.softmax_focal_loss_backward(softmax, *rest, buffer, grad, **settings)
    return {'loss': loss, 'grad': grad}


FAMILIES = [
    Family(
        'sigmoid focal loss',
        call_sigmoid,
        define_sigmoid,
        CASES,
        undefined={'large logits': "mmcv's kernel takes the logarithm of a probability of 0"},
    ),
    Family('softmax focal loss', call_softmax, define_softmax, SOFTMAX_CASES),
]
