/* netload put|get|rr HOST PORT COUNT: a stream of COUNT MiB to or from the
   server, or COUNT requests of 64 bytes with their answers. */
#include "bench.h"
#include <sys/socket.h>
#include <netinet/tcp.h>
#include <netinet/in.h>
#include <arpa/inet.h>
static char buf[1<<17];
static int all(int s,char*p,size_t n){while(n){ssize_t r=read(s,p,n);if(r<=0)return 0;p+=r;n-=r;}return 1;}
int main(int c,char**v){
  if(c!=5)return 2;
  struct sockaddr_in a={.sin_family=AF_INET,.sin_port=htons(atoi(v[3]))};inet_pton(AF_INET,v[2],&a.sin_addr);
  int s=socket(AF_INET,SOCK_STREAM,0),on=1;
  if(connect(s,(void*)&a,sizeof a)){perror("connect");return 1;}
  setsockopt(s,IPPROTO_TCP,TCP_NODELAY,&on,sizeof on);
  char kind=v[1][0];uint64_t count=atoll(v[4]),head=htobe64(count),sum=0;
  if(write(s,&kind,1)!=1||write(s,&head,8)!=8)return 1;
  double t=now();
  if(kind=='p'){
    for(uint64_t i=0;i<count*8;i++){memset(buf,(int)i,sizeof buf);
      for(size_t n=0;n<sizeof buf;){ssize_t r=write(s,buf+n,sizeof buf-n);if(r<=0)return 1;n+=r;}}
    if(!all(s,(char*)&sum,8))return 1;
    report("tcp_to_host",(now()-t)*1024/count,be64toh(sum));
  }else if(kind=='g'){
    uint64_t n=0;ssize_t r;
    while(n<count<<20&&(r=read(s,buf,sizeof buf))>0){n+=r;sum+=(unsigned char)buf[0];}
    report("tcp_from_host",(now()-t)*1024/count,n);
  }else{
    for(uint64_t i=0;i<count;i++)if(write(s,buf,64)!=64||!all(s,buf,64))return 1;
    report("tcp_round_trips",(now()-t)*10000/count,count);
  }
  return 0;}
