from lowrank_speech.inference.loaded import load as load
