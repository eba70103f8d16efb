"""python -m tests.cupy_on_cpu script.py args... | -m module args... | -c code"""
import os
import runpy
import sys

from . import install


def main():
    args = sys.argv[1:]
    if not args or args in (['-m'], ['-c']):
        sys.exit(__doc__)
    install()
    if args[0] == '-m':
        sys.argv = args[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(args[1], run_name='__main__', alter_sys=True)
    elif args[0] == '-c':
        sys.argv = ['-c', *args[2:]]
        sys.path.insert(0, os.getcwd())
        exec(compile(args[1], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.argv = args
        sys.path.insert(0, os.path.dirname(os.path.abspath(args[0])))
        runpy.run_path(args[0], run_name='__main__')


main()
