# A serial line does not carry the terminal's size. `holm run` puts it on the
# kernel command line (holm.console=COLUMNSxROWS) when it has a terminal;
# `console-size` asks the terminal again after it was resized.
console_size_from_boot() {
  for word in $(cat /proc/cmdline); do
    case $word in
      holm.console=*x*)
        word=${word#holm.console=}
        stty cols "${word%x*}" rows "${word#*x}" 2>/dev/null ;;
    esac
  done
}
console_size() {
  saved=$(stty -g)
  stty raw -echo min 0 time 10
  printf '\0337\033[999;999H\033[6n\0338'
  reply=$(dd bs=32 count=1 2>/dev/null)
  stty "$saved"
  reply=${reply#*\[}
  reply=${reply%R}
  case $reply in
    *[!0-9\;]*|'') echo 'console-size: the terminal does not answer' >&2 ;;
    *) stty rows "${reply%;*}" cols "${reply#*;}" ;;
  esac
}
alias console-size=console_size
case $(tty) in /dev/ttyS*) console_size_from_boot ;; esac
